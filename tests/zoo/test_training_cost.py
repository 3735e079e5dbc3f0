"""The formulas of a plan beside real training steps on the CPU: live bytes, saved tensors, operations."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from commands.plan import PlannedTraining, parameters_table
from tests.zoo.live_bytes import most_live_bytes
from timings.example_batch import example_batch
from zoo import (
    BaselineVLM,
    CameraPrediction,
    DepthPrediction,
    Distillation,
    FittedMetricModel,
    GeometryCache,
    GeoThinker,
    GeoThinkerFusion,
    MaskedViews,
    MetricScale,
    Objective,
    Qwen3VL,
    Qwen25VL,
    Qwen35,
    SpatialMLLM,
    Teacher,
    TeacherPose,
    TinyQwen3VL,
    TinyQwen25VL,
    TinyQwen35,
    TinyVGGT,
)
from zoo.backbones.lora import LoRA
from zoo.errors import InputError
from zoo.published.cambrian_s import CambrianS, PretrainedCambrianS, TinyCambrianS
from zoo.tasks import VideoQATask
from zoo.tasks.base import LearningRates, parameter_groups
from zoo.tasks.training_cost import BatchSizes, TrainingCost, sequence_sizes, total_bytes, training_cost

ALL = LearningRates(vision=1e-5)
SMALL: dict[str, Any] = {"layers": 2, "hidden_size": 128, "heads": 2, "vision_hidden_size": 32}
WIDE: dict[str, Any] = {"layers": 3, "hidden_size": 256, "heads": 4, "key_value_heads": 2}
VGGT = partial(TinyVGGT, embed_dim=32, depth=1, num_heads=2)
WITHIN_LAYERS = partial(GeoThinkerFusion, hidden=256, compress_beyond=None)
CASES: dict[str, tuple[Callable[[], VideoQATask], str]] = {
    "narrow": (lambda: SpatialMLLM(backbone=TinyQwen25VL(**SMALL), geometry=VGGT), "32-true"),
    "hybrid": (lambda: Qwen35(backbone=TinyQwen35(**{**SMALL, "layers": 4})), "32-true"),
    "Qwen3-VL, bfloat16": (lambda: Qwen3VL(backbone=TinyQwen3VL(**WIDE)), "bf16-mixed"),
    "adapters": (lambda: Qwen25VL(backbone=TinyQwen25VL(**WIDE, dtype="bfloat16"), lora=LoRA(8)), "bf16-mixed"),
    "within layers": (
        lambda: GeoThinker(backbone=TinyQwen25VL(**WIDE), geometry=VGGT, fusion=WITHIN_LAYERS),
        "bf16-mixed",
    ),
    "squares": (lambda: CambrianS(backbone=TinyCambrianS(**WIDE, image_size=224, frame_tokens=64)), "bf16-mixed"),
    "vision encoder": (lambda: Qwen3VL(backbone=TinyQwen3VL(**WIDE), learning_rates=ALL), "32-true"),
}
Squares = partial(TinyCambrianS, image_size=224, frame_tokens=64)  # of 256 patches, of which a frame keeps 4 x 8 tokens
SLOW = [pytest.param(each, marks=pytest.mark.slow) for each in list(CASES)[1:]]


def step(task: VideoQATask, sizes: BatchSizes, precision: str, backward: bool = True) -> None:
    """A forward and a backward pass."""
    batch = example_batch(task.model, sizes)
    with torch.autocast("cpu", torch.bfloat16, enabled=precision.startswith("bf16"), cache_enabled=False):
        loss = task.model(batch)["loss"]
    del batch
    if backward:
        loss.backward()


def sizes_for(task: VideoQATask, **more: int) -> BatchSizes:
    side = 4 * task.model.frame_rules.token_px
    shown_as: Any = {"kind": task.model.loader.shown_as.get("frames_as", "video")}
    return BatchSizes(
        num_frames=8, height=side, width=2 * side if shown_as["kind"] == "image" else side, **shown_as, **more
    )


def on_meta(build: Callable[[], VideoQATask]) -> VideoQATask:
    with torch.device("meta"):
        return build()


@pytest.mark.parametrize("name", ["narrow", *SLOW])
def test_the_planned_bytes_are_those_of_live_tensors(name: str) -> None:
    """Within 20 %; the rest is exact."""
    build, precision = CASES[name]
    shapes = on_meta(build)
    sizes = sizes_for(shapes, scenes=2, questions=2)
    cost = training_cost(shapes, sizes, precision)
    task = build()
    trained = [parameter for parameter in task.parameters() if parameter.requires_grad]
    for parameter in trained:
        parameter.grad = torch.zeros_like(parameter)
    measured = {}
    for checkpointing in (False, True):
        if checkpointing:
            task.model.backbone.enable_gradient_checkpointing()
        step(task, sizes, precision)  # what is cached, such as masks
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
            step(task, sizes, precision)
        measured[checkpointing] = most_live_bytes(profiled)
    planned = {checkpointing: each.activations for checkpointing, each in cost.steps.items()}
    assert planned == pytest.approx(measured, rel=0.2)
    assert planned[False] != pytest.approx(measured[True], rel=0.2)  # the control
    optimizer = task.optimizer(parameter_groups(task.named_parameters(), task.learning_rates, task.part_of))
    optimizer.step()
    states = [value for state in optimizer.state.values() for value in state.values()]
    assert cost.optimizer == total_bytes(states) and cost.gradients == total_bytes(trained)
    assert cost.weights == total_bytes([*task.parameters(), *task.buffers()])


@pytest.mark.parametrize(
    ("family", "recomputes"), [((TinyQwen25VL, 1), False), ((TinyQwen3VL, 3), True), ((Squares, 1), False)]
)
def test_the_planned_operations_are_those_of_a_step(family: tuple[Any, int], recomputes: bool) -> None:
    """By PyTorch's own counter, which knows the products of eager attention."""
    loader, questions = family
    build = partial(BaselineVLM, backbone=loader(**WIDE, attn_implementation="eager"))
    task = build()
    sizes = sizes_for(task, questions=questions)
    if recomputes:
        task.model.backbone.enable_gradient_checkpointing()
    with FlopCounterMode(display=False) as counter:
        step(task, sizes, "32-true")
    planned = training_cost(on_meta(build), sizes, "32-true").steps
    assert planned[recomputes].flops == pytest.approx(counter.get_total_flops(), rel=0.1)
    assert planned[not recomputes].flops != pytest.approx(counter.get_total_flops(), rel=0.1)  # the control
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        step(task, sizes, "32-true", backward=False)
    assert planned[recomputes].forward_flops == pytest.approx(counter.get_total_flops(), rel=0.1)


@pytest.mark.parametrize("questions, limit", [(1, None), (4, 400), (4, 10)])
@pytest.mark.parametrize("loader", [TinyQwen25VL, TinyQwen3VL, TinyQwen35, Squares])
def test_the_planned_tokens_are_those_of_a_batch(loader: Any, questions: int, limit: int | None) -> None:
    task = BaselineVLM(backbone=loader(layers=4))
    sizes = sizes_for(task, scenes=2, questions=questions)
    sizes = BatchSizes(**{**vars(sizes), "tokens_per_sequence": limit})
    sequences = example_batch(task.model, sizes).sequences
    assert sequences is not None
    visual, rows, length = sequence_sizes(task.model, sizes)
    assert (visual, rows, length) == (sequences.visual_counts[0], len(sequences.lengths), max(sequences.lengths))


def test_frames_of_squares_are_planned_without_their_padding() -> None:
    task = on_meta(lambda: CambrianS(backbone=PretrainedCambrianS("nyu-visionx/Cambrian-S-7B")))
    for (height, width), tokens in {(480, 640): 6 * (8 + 1), (640, 640): 8 * (8 + 1)}.items():
        sizes = BatchSizes(128, height, width, kind="image")
        assert sequence_sizes(task.model, sizes)[0] == 128 * tokens
    with pytest.raises(InputError, match="too narrow"):
        sequence_sizes(task.model, BatchSizes(2, 48, 640, kind="image"))


def test_compressed_tokens_are_planned_as_they_are_shown() -> None:
    for beyond, tokens in ((3, 4), (4, 16)):  # of four views of 4 x 4 tokens
        fusion = partial(GeoThinkerFusion, hidden=16, compress_beyond=beyond)
        task = GeoThinker(backbone=TinyQwen25VL(layers=2), geometry=VGGT, fusion=fusion)
        sizes = BatchSizes(num_frames=4, height=112, width=112, kind="image")
        sequences = example_batch(task.model, sizes).sequences
        assert sequences is not None
        assert sequence_sizes(task.model, sizes)[0] == sequences.visual_counts[0] == 4 * tokens


def test_objectives_are_parameters_and_operations() -> None:
    def cost(*objectives: Objective) -> TrainingCost:
        task = on_meta(lambda: Qwen25VL(backbone=TinyQwen25VL(layers=2), objectives=list(objectives)))
        return training_cost(task, BatchSizes(num_frames=4, height=56, width=56), "32-true")

    plain, head, token = cost(), cost(DepthPrediction()), cost(CameraPrediction(), MaskedViews())
    assert plain.steps[False].flops < head.steps[False].flops and plain.steps[False].flops < token.steps[False].flops
    assert plain.sequence_tokens == head.sequence_tokens < token.sequence_tokens
    assert plain.trained["objective"] == 0 < head.trained["objective"]
    assert list(parameters_table(head).columns[0].cells)[-2:] == ["objective", "total"]


def taught(teacher: Teacher | None) -> TrainingCost:
    """What a small model takes that learns from a teacher."""
    objectives = [Distillation(64, indices=[1, 2]), TeacherPose(), MetricScale()]
    task = on_meta(lambda: Qwen3VL(backbone=TinyQwen3VL(layers=2), teacher=teacher, objectives=objectives))
    return training_cost(task, BatchSizes(num_frames=4, height=64, width=64), "32-true")


def test_a_teacher_is_weights_and_operations(tmp_path: Path) -> None:
    """A cached teacher is not loaded."""
    vggt = partial(TinyVGGT, embed_dim=32, depth=4, layers=[1, 3], num_heads=2, heads=["camera", "depth"])
    alone, plain, cached = taught(None), taught(Teacher(vggt)), taught(Teacher(vggt, GeometryCache(str(tmp_path))))
    scaled = taught(Teacher(vggt, scale=FittedMetricModel))
    network = vggt()
    assert plain.teacher == total_bytes(network.parameters())
    assert plain.frozen["teacher"] == sum(each.numel() for each in network.parameters())
    assert scaled.frozen["teacher"] - plain.frozen["teacher"] == pytest.approx(0.33e9, rel=0.1)
    assert alone.teacher == cached.teacher == cached.frozen["teacher"] == 0  # the controls
    assert (plain.weights, plain.gradients, plain.optimizer) == (alone.weights, alone.gradients, alone.optimizer)
    flops = [each.steps[False].flops for each in (alone, plain, scaled)]
    assert flops == sorted(flops) and len(set(flops)) == 3
    rows = [PlannedTraining(cost, BatchSizes(4, 64, 64), "fsdp2", gpus=4) for cost in (alone, plain)]
    assert [each.rows.get("teacher", 0) for each in rows] == [0, plain.teacher]  # on each GPU the whole
    assert rows[1].evaluation - rows[0].evaluation == plain.teacher
    assert list(parameters_table(plain).columns[0].cells)[-2:] == ["teacher", "total"]
