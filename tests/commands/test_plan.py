"""The planned bytes are those of the live tensors of a real step on the CPU; errors are one line."""

from __future__ import annotations

import sys
from collections import Counter
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from itertools import accumulate
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from torch.optim import Optimizer
from torch.profiler import ProfilerActivity, profile
from transformers.models.qwen3_5 import modeling_qwen3_5

import main
from commands.planning.changes import Choice, alternatives, choose, launch, verdict
from commands.planning.hours import GPUS
from commands.planning.tables import described, parameters_table
from commands.planning.training import Setup, Training, _devices, parse
from commands.studies.scripts import takes
from commands.studies.study_file import Run
from tests.zoo.delta_net_kernels import install_kernels
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
from zoo.backbones.qwen3_5 import delta_net
from zoo.sequences.batch import Batch
from zoo.tasks import VideoQATask, repeated_calls, training_cost
from zoo.tasks.fake_tensors import Footprint
from zoo.tasks.optim import parameter_groups
from zoo.tasks.training_cost import BatchSizes, StepCost, TrainingCost, total_bytes

CONFIGS = Path(main.__file__).parent / "configs"
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


def most_live_bytes(profiled: profile) -> int:
    """The peak of what the allocator gave out and took back."""
    events = [each for each in profiled.profiler.kineto_results.events() if each.name() == "[memory]"]  # type: ignore[union-attr]
    return max(accumulate(each.nbytes() for each in sorted(events, key=lambda each: each.start_ns())))


@pytest.mark.parametrize(
    "size", ["narrow", *(pytest.param(each, marks=pytest.mark.slow) for each in ("default", "hybrid", "wide"))]
)
def test_the_planned_bytes_are_those_of_live_tensors(size: str, monkeypatch: pytest.MonkeyPatch) -> None:
    precision = SIZES[size][2]
    with torch.device("meta"):
        shapes = build(size)
    side = 4 * shapes.requirements.token_px
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


def test_a_step_is_counted_once_and_when_it_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """So a study's row of released weights, which only need room, and those of one setup take half the time."""
    run_step, runs = training_cost.run_step, list[str]()
    monkeypatch.setattr(training_cost, "run_step", lambda *each: (runs.append(each[-1]), run_step(*each))[1])
    with torch.device("meta"):
        task = Qwen25VL(backbone=TinyQwen25VL(layers=1))
    sizes = BatchSizes(num_frames=4, height=56, width=56)
    cost = training_cost.training_cost(task, sizes, "32-true")
    training = Training("", Setup("ddp", True), 2, 80e9, cost, sizes, 1)
    released, trained = (Run("", "", 0, (), (f"--trainer.max_steps={steps}",), {}, "macro", ()) for steps in (0, 1))
    assert takes(training, released)[1:] == ["", "", "", "", ""] and not runs
    assert takes(training, trained) == takes(training, trained) and len(runs) == 1
    assert training_cost.example_batch(task.model, sizes).scenes[0].pixel_values.dtype == torch.uint8  # as they travel


class SecondStep(Callback):
    """Measures the second batch of a training's second step, which finds the gradients of the first batch."""

    measured: dict[str, Any] = {}

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Batch, batch_idx: int) -> None:
        if batch_idx == 3:
            sizes: list[int] = []
            batch.map(lambda tensor: sizes.append(tensor.nbytes) or tensor)
            self.measured |= {"batch": sum(sizes), "tokens": max(batch.sequences.lengths)}
            self.profile = profile(activities=[ProfilerActivity.CPU], profile_memory=True)
            self.profile.__enter__()

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        if trainer.global_step == 1:
            self.profile.__exit__(None, None, None)
            states = [value for state in optimizer.state.values() for value in state.values()]
            self.measured |= {
                "weights": total_bytes([*pl_module.parameters(), *pl_module.buffers()]),
                "gradients": total_bytes(each.grad for each in pl_module.parameters() if each.grad is not None),
                "optimizer": total_bytes(states),
                "activations": self.measured["batch"] + most_live_bytes(self.profile),
            }


@pytest.mark.slow
@pytest.mark.parametrize(
    "more",
    [
        ("prope.yaml",),
        ("prope.yaml", "--model.lora.r", "8", "--model.gradient_checkpointing", "true"),
        ("qwen25_vl.yaml", "--data.questions_per_scene", "4", "--trainer.precision", "bf16-mixed"),
    ],
    ids=["prope", "lora, checkpointing", "questions, bf16"],
)
def test_a_real_training_takes_what_is_planned(more: tuple[str, ...], monkeypatch, rooms_root, tmp_path) -> None:
    monkeypatch.chdir(tmp_path)
    data = ("--data.source.root", str(rooms_root), "--data.source.scenes", "[6,2,3]", "--data.question_types", "null")
    words = ["--config", str(CONFIGS / more[0]), *more[1:], *data, "--data.batch_size", "2"]
    fit = ["--trainer.max_steps", "2", "--trainer.accumulate_grad_batches", "2", "--trainer.limit_val_batches", "0"]
    fit += [f"--trainer.callbacks+={SecondStep.__module__}.SecondStep"]
    monkeypatch.setattr(sys, "argv", ["main.py", "fit", *words, *fit])
    main.main()
    measured, planned = SecondStep.measured, parse(words)
    longer = (planned.cost.sequence_tokens - measured["tokens"]) // planned.batch.questions  # texts of the plan's
    monkeypatch.setattr(training_cost, "QUESTION", training_cost.QUESTION - longer)
    rows = parse(words).rows(planned.setup)
    assert rows["weights"] == measured["weights"] and rows["gradients"] == measured["gradients"]
    assert rows["optimizer"] == pytest.approx(measured["optimizer"], rel=1e-3)  # which counts steps
    assert rows["activations"] == pytest.approx(measured["activations"], rel=0.12)


def run(monkeypatch: pytest.MonkeyPatch, *words: str) -> None:
    monkeypatch.setattr(sys, "argv", ["main.py", "plan", *words])
    main.main()


FULL = ["3b", "7b", "qwen3vl_2b", "qwen3vl_4b", "qwen3vl_8b"]


@pytest.mark.parametrize(
    ("model", "scale"),
    [
        pytest.param("prope", "scale_tiny", marks=pytest.mark.slow),
        ("qwen3_vl", "scale_tiny_qwen3"),
        pytest.param("spatial_mllm", "spatial_mllm_released", marks=pytest.mark.slow),
        *(pytest.param("prope", f"scale_{size}", marks=pytest.mark.slow) for size in FULL),
    ],
)
def test_a_plan_needs_nothing_but_its_configs(model: str, scale: str, monkeypatch, capsys) -> None:
    words = ("--config", f"{model}.yaml", "--config", f"{scale}.yaml", "--config", "data_vsibench.yaml")
    small = ("--model.backbone.layers", "1") if "tiny" in scale else ()
    run(monkeypatch, *words, *small, "--gpus", "8")
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1].startswith("fits: " if "tiny" in scale else ("fits: ", "does not fit: "))
    assert any(line.split()[:1] == ["total"] for line in lines) and "visual tokens" in lines[-3]


def test_a_plan_says_what_it_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("commands.planning.training.training_cost", lambda *_: COST)
    for words, name in ((["--config", str(CONFIGS / "grpo.yaml")], "GRPO"), ([], None)):
        training = parse(["--config", str(CONFIGS / "qwen25_vl.yaml"), *words, "--model.backbone.layers", "1"])
        assert training.uncounted == name and ("GRPO" in described(training)) == (name is not None)


@pytest.mark.slow
def test_many_questions_and_attention_that_needs_a_gpu_are_planned(monkeypatch, capsys) -> None:
    """Texts are of no token that stands for a picture, and FlexAttention has no gradients on a CPU."""
    flex = ("--model.backbone.attn_implementation", "flex_attention", "--data.batch_size", "4")
    run(monkeypatch, "--config", "qwen25_vl.yaml", *flex, "--data.questions_per_scene", "20")
    assert "4 scenes with 20 questions" in capsys.readouterr().out


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


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (["--gpus", "0"], "--gpus 0: more than 0"),
        (["--memory_gb", "-1"], "--memory_gb -1.0: more than 0"),
        (["--video_size", "[480]"], "--video_size [480]: height and width in pixels, such as [480,640]"),
        (["--video_size", "[2,4800]"], "--video_size: a frame of 4800 x 2 pixels can't be resized"),
        (["--memori_gb", "80"], "memori_gb: there is no such option; did you mean memory_gb?"),
        (["--model.lora.r", "0"], "--model.lora.r 0: a rank is at least 1"),
        (
            ["--model", "VGGTPretraining"],
            "plan counts a model that learns from questions, and VGGTPretraining does not",
        ),
        (["--model", "VideoQATask"], "which model? Name one, such as --config qwen25_vl.yaml"),
        (["--model.backbone", "PretrainedQwen25VL", "--model.backbone.path", "./gone"], "./gone is no folder"),
    ],
)
def test_errors_are_one_line(words: list[str], error: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SystemExit) as stop:
        run(monkeypatch, "--config", "qwen25_vl.yaml", *words)
    assert error in str(stop.value.code) and "\n" not in str(stop.value.code)


GB = 10**9
COST = TrainingCost(
    trained=Counter(decoder=1),
    weights=16 * GB,
    gradients=16 * GB,
    optimizer=32 * GB,
    gathered={False: 4 * GB, True: 18 * GB},
    gathered_weights=8 * GB,
    steps={False: StepCost(30 * GB, 1), True: StepCost(10 * GB, 1)},
)


@pytest.mark.parametrize(
    ("gb", "setup", "expected"),
    [
        (95, Setup("ddp", False), "fits: 94.0 of 95.0 GB"),
        (75, Setup("ddp", False), "take --model.gradient_checkpointing true: 74.0 GB"),
        (70, Setup("ddp", True), "take --config strategy_fsdp2.yaml: 46.0 GB"),
        (50, Setup("fsdp2", False), "take --model.gradient_checkpointing true: 46.0 GB"),
        (40, Setup("fsdp2", True), "take on 4 GPUs: 30.0 GB"),
    ],
)
def test_the_last_line_names_the_first_change_that_fits(gb: int, setup: Setup, expected: str) -> None:
    training = Training("", setup, 2, float(gb * GB), COST, BatchSizes(16, 56, 56), 1)
    assert expected in verdict(training, choose(training, []))


@pytest.mark.parametrize(
    ("accumulated", "weights", "needed"),
    [
        (1, 8, 16 / 4 + 16 / 4 + 32 / 4 + 4 + 10),
        (2, 8, 16 / 4 + 16 / 4 + 32 / 4 + 18 + 10),  # the gradients of the whole model until the step's last batch
        (1, 40, 16 / 4 + 32 / 4 + 40),  # the whole weights in a validation are more than a step
    ],
)
def test_shards_are_beside_what_is_gathered(accumulated: int, weights: int, needed: float) -> None:
    cost = replace(COST, gathered_weights=weights * GB)
    training = Training("", Setup("fsdp2", True), 4, 80.0 * GB, cost, BatchSizes(16, 56, 56), accumulated)
    assert training.needed(training.setup) == needed * GB
    assert training.needed(Setup("ddp", True)) == 74 * GB


@pytest.mark.parametrize(
    "value, count", [(None, 1), ("auto", 1), (4, 4), ("4", 4), ([0, 1, 2, 3], 4), ("0,1", 2), ("3,", 1)]
)
def test_devices_are_counted_as_lightning_takes_them(value: object, count: int) -> None:
    assert _devices(value) == count


def test_a_full_scale_plans_real_videos_and_counts_all_nodes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Though the default data are rendered rooms of 56 x 56 pixels; a smaller model stands for the full one."""
    words = ["--config", str(CONFIGS / "qwen25_vl.yaml"), "--trainer.num_nodes", "2", "--trainer.devices", "4"]
    monkeypatch.setattr("commands.planning.training.training_cost", lambda *_: COST)
    few = [*words, "--model.backbone.layers", "1"]
    tiny = parse(few)
    assert (tiny.video, tiny.gpus, tiny.is_pretrained) == ((56, 56), 8, False)
    monkeypatch.setattr(TinyQwen25VL, "is_pretrained", True)
    full = parse(few)
    assert (full.video, full.is_pretrained) == ((480, 640), True) and full.batch.height > tiny.batch.height
    assert parse([*few, "--video_size", "[112,112]"]).video == (112, 112)


def test_hours_are_operations_over_a_share_of_the_peak() -> None:
    cost = replace(COST, steps={False: StepCost(0, 3 * 10**15), True: StepCost(0, 4 * 10**15)})
    training = Training("", Setup("ddp", False), 2, 80.0 * GB, cost, BatchSizes(16, 56, 56), 3, utilization=0.5)
    h100 = next(gpu for gpu in GPUS if gpu.name == "H100")

    def hours(checkpointing: bool, **changes: Any) -> float:
        changed = training._replace(**changes)
        return h100.hours(changed.operations(Setup("ddp", checkpointing)), changed.utilization)

    step = 3 * 3 * 10**15 / (0.5 * h100.peak_tflops * 10**12) / 3600
    assert hours(False, max_steps=100) == pytest.approx(100 * step)
    assert hours(True, max_steps=100) == pytest.approx(100 * step * 4 / 3)
    assert hours(False, max_steps=100, epoch=600) == pytest.approx(100 * step)  # of 2 x 3 questions in a step
    assert hours(False) == pytest.approx(10_000 / 6 * step) and "10,000 questions" in training.length.name


def test_alternatives_come_one_by_one_and_then_together() -> None:
    cost = replace(COST, trained=Counter(decoder=5))
    training = Training("", Setup("ddp", False), 2, 80.0 * GB, cost, BatchSizes(16, 56, 56), 1)
    lora, frames = ("--model.lora.r", "16"), ("--data.num_frames", "8")
    assert [each[1:] for each in alternatives(training)] == [
        ((), Setup("ddp", False)),
        ((), Setup("ddp", True)),
        (lora, Setup("ddp", False)),
        (frames, Setup("ddp", False)),
        ((), Setup("fsdp2", False)),
        ((*lora, *frames), Setup("fsdp2", True)),
    ]
    alone = training._replace(gpus=1, setup=Setup("ddp", True), cost=replace(cost, frozen=Counter(decoder=9)))
    assert [each[1] for each in alternatives(alone)] == [(), frames]


def test_the_chosen_line_is_a_command_that_starts_it() -> None:
    given = [
        "--config",
        str(CONFIGS / "prope.yaml"),
        "--gpus",
        "16",
        "--questions=9",
        "--trainer.devices",
        "4",
        "--data.num_frames",
        "8",
    ]
    several = Choice(("--model.lora.r", "16", "--config", "strategy_fsdp2.yaml"), 16, 1.0, True)
    assert launch(given, several) == (
        "srun python main.py fit --config prope.yaml --config strategy_fsdp2.yaml --data.num_frames 8 "
        "--model.lora.r 16 --trainer.devices 8 --trainer.num_nodes 2"
    )
    assert launch(given[:2], Choice((), 1, 1.0, True)) == "python main.py fit --config prope.yaml"
