"""The counted bytes are those of the live tensors of a real step on the CPU; each part of a training is counted."""

from __future__ import annotations

from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.profiler import ProfilerActivity, profile
from transformers.models.qwen3_5 import modeling_qwen3_5

from commands.planning.tables import parameters_table
from commands.planning.training import Setup, Training
from tests.zoo.delta_net_kernels import install_kernels
from tests.zoo.live_bytes import most_live_bytes
from zoo import (
    CameraPrediction,
    DepthPrediction,
    Distillation,
    FittedMetricModel,
    GeometryCache,
    MaskedViews,
    MetricScale,
    Objective,
    PretrainedQwen35,
    PRoPE,
    PRoPEMLLM,
    Qwen3VL,
    Qwen25VL,
    Qwen35,
    SpatialMLLM,
    SpatialVLM,
    Teacher,
    TeacherPose,
    TinyQwen3VL,
    TinyQwen25VL,
    TinyQwen35,
    TinyVGGT,
)
from zoo.backbones import qwen3_5 as delta_net
from zoo.tasks import VideoQATask, repeated_calls, training_cost
from zoo.tasks.base import parameter_groups
from zoo.tasks.fake_tensors import Footprint
from zoo.tasks.training_cost import BatchSizes, StepCost, TrainingCost, total_bytes

SIZES: dict[str, tuple[Any, dict[str, int], str]] = {
    "narrow": (TinyQwen25VL, {"layers": 2, "hidden_size": 128, "heads": 2, "vision_hidden_size": 32}, "32-true"),
    "default": (TinyQwen3VL, {}, "32-true"),
    "hybrid": (TinyQwen35, {"layers": 4, "hidden_size": 128, "heads": 2, "vision_hidden_size": 32}, "32-true"),
    "wide": (TinyQwen25VL, {"layers": 3, "hidden_size": 256, "heads": 4, "key_value_heads": 2}, "bf16-mixed"),
}


def build(size: str) -> VideoQATask:
    loader, sizes, _ = SIZES[size]
    if size == "default":
        return PRoPEMLLM(PRoPE(), backbone=loader(**sizes))
    return SpatialMLLM(backbone=loader(**sizes), geometry=partial(TinyVGGT, embed_dim=32, depth=1, num_heads=2))


@pytest.mark.parametrize(
    "size", ["narrow", *(pytest.param(each, marks=pytest.mark.slow) for each in ("default", "hybrid", "wide"))]
)
def test_the_planned_bytes_are_those_of_live_tensors(size: str, monkeypatch: pytest.MonkeyPatch) -> None:
    precision = SIZES[size][2]
    with torch.device("meta"):
        shapes = build(size)
    side = 4 * shapes.model_spec().token_px
    batch = BatchSizes(num_frames=4, height=side, width=side, scenes=2, questions=2)
    cost = training_cost.training_cost(shapes, batch, precision)
    planned = {checkpointing: cost.steps[checkpointing].activations for checkpointing in (True, False)}
    monkeypatch.setattr(training_cost, "fake_tensor", torch.zeros)
    task = build(size)
    trained = [parameter for parameter in task.parameters() if parameter.requires_grad]
    for parameter in trained:
        parameter.grad = torch.zeros_like(parameter)
    measured = {}
    for checkpointing in (False, True):
        if checkpointing:
            task.model.backbone.enable_gradient_checkpointing()
        training_cost.run_step(task, batch, precision)  # what is cached, such as masks
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
            training_cost.run_step(task, batch, precision)
        measured[checkpointing] = most_live_bytes(profiled)
    assert planned == pytest.approx(measured, rel=0.1)
    assert planned[False] != pytest.approx(measured[True], rel=0.1)  # the control
    optimizer = task.optimizer(parameter_groups(task.named_parameters(), task.learning_rates, task.part_of))
    optimizer.step()
    states = [value for state in optimizer.state.values() for value in state.values()]
    assert cost.optimizer == total_bytes(states) and cost.gradients == total_bytes(trained)
    assert cost.weights == total_bytes([*task.parameters(), *task.buffers()])


@pytest.mark.slow
def test_objectives_are_parameters_and_operations(monkeypatch: pytest.MonkeyPatch) -> None:
    def cost(*objectives: Objective) -> TrainingCost:
        with torch.device("meta"):
            task = Qwen25VL(backbone=TinyQwen25VL(layers=2), objectives=list(objectives))
        return training_cost.training_cost(task, BatchSizes(num_frames=4, height=56, width=56), "32-true")

    plain, head, token = cost(), cost(DepthPrediction()), cost(CameraPrediction(), MaskedViews())
    assert plain.steps[False].flops < head.steps[False].flops < token.steps[False].flops
    assert plain.trained["objective"] == 0 < head.trained["objective"]
    assert list(parameters_table(head).columns[0].cells)[-2:] == ["objective", "total"]


def taught(teacher: Teacher | None) -> TrainingCost:
    """What a small model takes that learns from a teacher."""
    objectives = [Distillation(64, indices=[1, 2]), TeacherPose(), MetricScale()]
    with torch.device("meta"):
        task = Qwen3VL(backbone=TinyQwen3VL(layers=2), teacher=teacher, objectives=objectives)
    return training_cost.training_cost(task, BatchSizes(num_frames=4, height=64, width=64), "32-true")


@pytest.mark.slow
def test_a_teacher_is_weights_and_operations(tmp_path: Path) -> None:
    """A cached teacher is not loaded, but its targets still take memory in a step."""
    vggt = partial(TinyVGGT, embed_dim=32, depth=4, layers=[1, 3], num_heads=2, heads=["camera", "depth"])
    alone, plain, cached = taught(None), taught(Teacher(vggt)), taught(Teacher(vggt, GeometryCache(str(tmp_path))))
    scaled = taught(Teacher(vggt, scale=FittedMetricModel))
    network = vggt()
    assert plain.teacher == total_bytes([*network.parameters(), *network.buffers()])
    assert plain.frozen["teacher"] == sum(each.numel() for each in network.parameters())
    assert scaled.frozen["teacher"] - plain.frozen["teacher"] == pytest.approx(0.33e9, rel=0.1)
    assert alone.teacher == cached.teacher == cached.frozen["teacher"] == 0  # the controls
    assert (plain.weights, plain.gradients, plain.optimizer) == (alone.weights, alone.gradients, alone.optimizer)
    steps = [each.steps[False] for each in (alone, cached, plain, scaled)]
    assert sorted(each.flops for each in steps) == [each.flops for each in steps]
    with Footprint() as real, torch.no_grad():
        network([torch.zeros(2, 3, 56, 56)], [None])  # one frame of each temporal patch, on the grid of 4 x 4 patches
    assert steps[2].flops - steps[1].flops == pytest.approx(real.flops, rel=0.02)
    assert steps[0].activations < steps[1].activations
    rows = [Training("", Setup("fsdp2", False), 4, 80e9, cost, BatchSizes(4, 64, 64), 1) for cost in (alone, plain)]
    more = [each.rows(each.setup).get("teacher", 0) for each in rows]
    assert more == [0, plain.teacher]  # on each GPU the whole
    assert rows[1].evaluation(rows[1].setup) - rows[0].evaluation(rows[0].setup) == plain.teacher
    assert list(parameters_table(plain).columns[0].cells)[-2:] == ["teacher", "total"]


@pytest.mark.slow
@pytest.mark.parametrize("questions", [1, 3])
def test_one_call_of_the_delta_rule_stands_for_all(questions: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is planned is what all calls take, at a fraction of the time."""
    rule, calls = delta_net.torch_chunk_gated_delta_rule, list[int]()

    def record(query: Any, *rest: Any, **options: Any) -> Any:
        calls.append(query.shape[1])
        return rule(query, *rest, **options)

    for module in (delta_net, modeling_qwen3_5):
        monkeypatch.setattr(module, "torch_chunk_gated_delta_rule", record)
    sizes = BatchSizes(num_frames=4, height=128, width=128, questions=questions)
    steps, counts = [], []
    for count_once in (repeated_calls.count_repeated_calls_once, lambda step: nullcontext()):
        monkeypatch.setattr(training_cost, "count_repeated_calls_once", count_once)
        with torch.device("meta"):
            task = Qwen35(backbone=TinyQwen35(layers=8, hidden_size=64, heads=2, vision_hidden_size=32))
        calls.clear()
        cost = training_cost.training_cost(task, sizes, "32-true")
        steps.append([cost.steps[checkpointing] for checkpointing in (False, True)])
        counts.append(len(calls))
    once, each = steps
    assert [step.flops for step in once] == [step.flops for step in each]
    assert [step.activations for step in once] == pytest.approx([step.activations for step in each], rel=0.01)
    assert once[0].activations > 1.5 * once[1].activations  # the control
    assert counts[0] < counts[1]


@pytest.mark.slow
@pytest.mark.parametrize("questions", [1, 2])
def test_a_plan_is_the_same_where_the_optional_kernels_are_installed(questions: int, monkeypatch) -> None:
    """They take no fake tensors, so the functions of PyTorch are counted in their place."""

    def planned() -> StepCost:
        with torch.device("meta"):
            task = Qwen35(backbone=TinyQwen35(layers=2, hidden_size=64, heads=2, vision_hidden_size=32))
        sizes = BatchSizes(num_frames=2, height=64, width=64, questions=questions)
        return training_cost.training_cost(task, sizes, "32-true").steps[False]

    without, kernels = planned(), install_kernels(monkeypatch)
    assert planned() == without and not kernels.calls
    learned = SpatialVLM(TinyQwen35(layers=2, hidden_size=64, heads=2, vision_hidden_size=32))
    learned.logits(torch.ones(1, 3, dtype=torch.long), torch.ones(1, 3, dtype=torch.long))
    assert kernels.calls.keys() == {"chunk", "convolution"}  # the control


@pytest.mark.slow
def test_released_weights_are_planned_without_a_folder() -> None:
    """Their pixels are bytes too, which a preprocessor without a folder would not take."""
    with torch.device("meta"):
        task = Qwen35(backbone=PretrainedQwen35("Qwen/Qwen3.5-0.8B"))
    cost = training_cost.training_cost(task, BatchSizes(num_frames=2, height=64, width=64), "bf16-mixed")
    assert cost.steps[False].flops > 6 * 0.4e9 * cost.sequence_tokens  # of a decoder's products
