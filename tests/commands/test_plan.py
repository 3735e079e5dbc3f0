"""A plan reads a run's configs and options, and is what a real training takes; errors are one line."""

from __future__ import annotations

import shlex
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from torch.optim import Optimizer
from torch.profiler import ProfilerActivity, profile

import main
from commands.plan import (
    ACCUMULATE,
    GPUS,
    PlannedTraining,
    alternatives,
    choose,
    described,
    gigabytes,
    launch,
    parsed,
    verdict,
)
from tests.commands.made_cost import COST, GB
from tests.zoo.live_bytes import most_live_bytes
from zoo import TinyQwen25VL
from zoo.sequences.batch import Batch
from zoo.tasks import training_cost
from zoo.tasks.training_cost import BatchSizes, StepCost, total_bytes

CONFIGS = Path(main.__file__).parent / "configs"
BATCH = BatchSizes(16, 56, 56)


def run(monkeypatch: pytest.MonkeyPatch, *words: str) -> None:
    monkeypatch.setattr(sys, "argv", ["main.py", "plan", *words])
    main.main()


def planned(*words: str) -> PlannedTraining:
    return parsed(tuple(words))


# ---- Against a real training -----------------------------------------------------------------------------------------


class SecondStep(Callback):
    """Measures the second batch of a training's second step, which finds the gradients of the first batch."""

    measured: dict[str, Any] = {}

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Batch, batch_idx: int) -> None:
        if batch_idx == 3:
            self.measured["tokens"] = max(batch.sequences.lengths)
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
                "activations": most_live_bytes(self.profile),
            }


@pytest.mark.slow
@pytest.mark.parametrize(
    "more",
    [
        ("prope.yaml", "--config", "data_rooms.yaml", "--model.lora.r", "8", "--model.gradient_checkpointing", "true"),
        ("qwen25_vl.yaml", "--data.questions_per_scene", "4", "--trainer.precision", "bf16-mixed"),
    ],
    ids=["lora, checkpointing", "questions, bf16"],
)
def test_a_real_training_takes_what_is_planned(more: tuple[str, ...], monkeypatch, rooms_root, tmp_path) -> None:
    monkeypatch.chdir(tmp_path)
    data = ("--data.source.root", str(rooms_root), "--data.source.scenes", "[6,2,3]", "--data.question_types", "null")
    words = ["--config", *more, *data, "--data.batch_size", "2"]
    fit = ["--trainer.max_steps", "2", "--trainer.accumulate_grad_batches", "2", "--trainer.limit_val_batches", "0"]
    fit += [f"--trainer.callbacks+={SecondStep.__module__}.SecondStep"]
    monkeypatch.setattr(sys, "argv", ["main.py", "fit", *words, *fit])
    main.main()
    measured, before = SecondStep.measured, planned(*words)
    longer = (before.cost.sequence_tokens - measured["tokens"]) // before.batch.questions  # texts of the plan's
    monkeypatch.setattr(training_cost, "QUESTION", training_cost.QUESTION - longer)
    parsed.cache_clear()
    rows = planned(*words).rows
    parsed.cache_clear()
    assert rows["weights"] == measured["weights"] and rows["gradients"] == measured["gradients"]
    assert rows["optimizer"] == pytest.approx(measured["optimizer"], rel=1e-3)  # which counts steps
    assert rows["activations"] == pytest.approx(measured["activations"], rel=0.2)


# ---- The command -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "configs",
    [
        "qwen3_vl.yaml scale_tiny_qwen3.yaml data_vsibench.yaml",
        *(
            pytest.param(each, marks=pytest.mark.slow)
            for each in (
                "prope.yaml grpo.yaml",
                "prope.yaml scale_7b.yaml data_vsibench.yaml",
                "qwen3_5.yaml scale_qwen3_5_4b.yaml",
                "geovr.yaml",
                "spatial_mllm.yaml spatial_mllm_released.yaml data_vsibench.yaml",
                "vg_llm.yaml scale_vg_llm_4b.yaml recipes/vg_llm_4b.yaml",
            )
        ),
    ],
)
def test_a_plan_needs_nothing_but_its_configs(configs: str, monkeypatch, capsys) -> None:
    run(monkeypatch, *(word for name in configs.split() for word in ("--config", name)), "--gpus", "8")
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1].startswith(("fits: ", "does not fit: "))
    assert any(line.split()[:1] == ["total"] for line in lines) and any("visual tokens" in line for line in lines)


@pytest.mark.slow
def test_a_step_has_the_recipes_questions_on_any_number_of_gpus(monkeypatch, capsys) -> None:
    words = ("--config", "spatial_mllm.yaml", "--config", "recipes/spatial_mllm_135k.yaml")
    for gpus, batches in ((6, 8), (8, 6)):
        assert (found := planned(*words, "--gpus", str(gpus))).questions_per_step == 48
        assert (found.gpus, found.accumulated) == (gpus, batches)
    assert planned(*words).gpus == 6
    run(monkeypatch, *words, "--gpus", "5")  # the control: 48 has no divisor 5
    printed = capsys.readouterr().out
    assert "a step of 50 questions: 5 GPUs x 10 batches x 1 scenes" in printed
    assert "warning: a step has 50 questions on 5 GPUs, and 48 on the 6 of --trainer.devices" in printed
    assert planned(*words, "--gpus", "8", ACCUMULATE, "8").questions_per_step == 64  # the user's own choice
    run(monkeypatch, *words, "--gpus", "8")
    assert "warning" not in (printed := capsys.readouterr().out) and "a step of 48 questions: 8 GPUs" in printed


@pytest.mark.parametrize(
    "words",
    [
        ["--gpus", "8", "--trainer.num_nodes", "2", "--trainer.devices", "4"],
        *(
            pytest.param(["--gpus", gpus, "--trainer.num_nodes", "2", "--trainer.devices", "4"], marks=pytest.mark.slow)
            for gpus in ("4", "9")
        ),
        pytest.param(["--gpus", "2", "--memory_gb", "0.1"], marks=pytest.mark.slow),
        ["--memory_gb", "0.035", "--data.batch_size", "4"],
        ["--gpus", "8", ACCUMULATE, "4", "--trainer.devices=[0,1]"],
    ],
)
def test_the_printed_command_is_the_training_that_is_described(words: list[str], monkeypatch, capsys) -> None:
    monkeypatch.setattr("commands.plan.MOST_GPUS", 8)
    run(monkeypatch, "--config", "qwen25_vl.yaml", *words)
    printed = capsys.readouterr().out
    (line,) = (line for line in printed.splitlines() if line.startswith("to start it: "))
    found = planned(*shlex.split(line.partition(" fit ")[2]))
    assert described(found) in printed
    assert f"{gigabytes(found.needed)} " in printed.splitlines()[-1]
    assert ("srun" in line) == (found.configured[0] > 1)


def test_a_config_of_a_strategy_keeps_the_recipes_precision_and_accumulation() -> None:
    words = ("--config", "qwen25_vl.yaml", "--config", "recipe_full.yaml")
    plain, sharded = (planned(*words, *more) for more in ((), ("--config", "strategy_fsdp2.yaml")))
    assert (plain.strategy, sharded.strategy) == ("ddp", "fsdp2")
    assert plain.accumulated == sharded.accumulated == 16 and plain.cost.steps == sharded.cost.steps


def test_what_is_planned_and_what_is_not(monkeypatch, capsys) -> None:
    """Many questions, attention that needs a GPU, and a remark that GRPO's samples are not counted."""
    flex = ("--model.backbone.attn_implementation", "flex_attention", "--data.batch_size", "4")
    run(monkeypatch, "--config", "qwen25_vl.yaml", *flex, "--data.questions_per_scene", "20")
    printed = capsys.readouterr().out
    assert "4 scenes with 20 questions" in printed and "GRPO" not in printed
    assert "GRPO" in described(planned("--config", "qwen25_vl.yaml", "--config", "grpo.yaml"))


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (["--gpus", "0"], "--gpus 0: more than 0"),
        (["--video_size", "[480]"], "--video_size [480]: height and width in pixels, such as [480,640]"),
        (["--video_size", "[2,4800]"], "--video_size: a frame of 4800 x 2 pixels can't be resized"),
        (["--model.lora.r", "0"], "--model.lora.r 0: a rank is at least 1"),
        (["--model", "VideoQATask"], "which model? Name one, such as --config qwen25_vl.yaml"),
        (["--model.backbone", "PretrainedQwen25VL", "--model.backbone.path", "./gone"], "./gone is no folder"),
    ],
)
def test_errors_are_one_line(words: list[str], error: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SystemExit) as stop:
        run(monkeypatch, "--config", "qwen25_vl.yaml", *words)
    assert error in str(stop.value.code) and "\n" not in str(stop.value.code)


def test_a_full_scale_plans_real_videos_and_counts_all_nodes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Though the default data are rendered rooms of 56 x 56 pixels; a smaller model stands for the full one."""
    few = ["--config", "qwen25_vl.yaml", "--trainer.num_nodes", "2", "--trainer.devices", "4"]
    tiny = planned(*few)
    assert (tiny.video, tiny.gpus, tiny.is_pretrained) == ((56, 56), 8, False)
    monkeypatch.setattr(TinyQwen25VL, "is_pretrained", True)
    parsed.cache_clear()
    full = planned(*few)
    assert (full.video, full.is_pretrained) == ((480, 640), True) and full.batch.height > tiny.batch.height
    assert planned(*few, "--video_size", "[112,112]").video == (112, 112)
    parsed.cache_clear()


# ---- What is computed from a cost: shards, hours, and the first change that fits -------------------------------------


@pytest.mark.parametrize(
    ("gb", "strategy", "checkpointing", "expected"),
    [
        (95, "ddp", False, "fits: 94.0 of 95.0 GB"),
        (75, "ddp", False, "take --model.gradient_checkpointing true: 74.0 GB"),
        (70, "ddp", True, "take --trainer.strategy fsdp2: 46.0 GB"),
        (40, "fsdp2", True, "take on 4 GPUs: 30.0 GB"),
    ],
)
def test_the_last_line_names_the_first_change_that_fits(gb, strategy, checkpointing, expected) -> None:
    training = PlannedTraining(COST, BATCH, strategy, checkpointing, gpus=2, memory=float(gb * GB), batches=2)
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
    batches = 4 * accumulated
    training = PlannedTraining(cost, BATCH, "fsdp2", True, gpus=4, accumulated=accumulated, batches=batches)
    assert training.needed == needed * GB
    assert training.variant("ddp", True).needed == 74 * GB


def test_hours_are_operations_over_a_share_of_the_peak() -> None:
    cost = replace(COST, steps={False: StepCost(0, 3 * 10**18, 10**18), True: StepCost(0, 4 * 10**18, 10**18)})
    training = PlannedTraining(cost, BATCH, gpus=2, accumulated=3, utilization=0.5, batches=6)
    column = 1 + [gpu.name for gpu in GPUS].index("H200")

    def hours(checkpointing: bool, **changes: Any) -> float:
        return float(training._replace(checkpointing=checkpointing, **changes).on_each_gpu()[column].replace(",", ""))

    step = 3 * 3 * 10**18 / (0.5 * GPUS[column - 1].peak_tflops * 10**12) / 3600
    assert hours(False, max_steps=100) == pytest.approx(100 * step, rel=1e-3)
    assert hours(True, max_steps=100) == pytest.approx(100 * step * 4 / 3, rel=1e-3)
    assert hours(False, max_steps=100, epoch=600) == pytest.approx(100 * step, rel=1e-3)  # of 2 x 3 questions a step
    assert hours(False) == pytest.approx(10_000 / 6 * step, rel=1e-3) and "10,000 questions" in training.length[1]


def test_alternatives_come_one_by_one_and_then_together(monkeypatch: pytest.MonkeyPatch) -> None:
    cost = replace(COST, trained=Counter(decoder=5), frozen=Counter())
    training = PlannedTraining(cost, replace(BATCH, scenes=4), gpus=2, batches=2)
    monkeypatch.setattr("commands.plan.parsed", lambda words: training)
    checkpointing, fsdp2 = "--model.gradient_checkpointing true", "--trainer.strategy fsdp2"
    lora, frames = "--model.lora.r 16", "--data.num_frames 8"
    one = "--data.batch_size 1 --trainer.accumulate_grad_batches 4"
    assert [" ".join(each.changes) for each in alternatives(training, [])] == [
        *("", checkpointing, lora, one, frames, fsdp2),
        f"{lora} {one} {frames} {checkpointing} {fsdp2}",
    ]
    small = PlannedTraining(COST, BATCH, memory=float(GB))
    monkeypatch.setattr("commands.plan.parsed", lambda words: small)
    assert "rent larger GPUs" in verdict(small, choose(small, []))  # nothing fits


def test_the_chosen_line_is_a_command_that_starts_it() -> None:
    config = str(CONFIGS / "prope.yaml")
    given = ["--config", config, "--gpus", "16", "--questions=9", "--trainer.devices", "4", "--data.num_frames", "8"]
    changes = ("--model.lora.r", "16", "--trainer.strategy", "fsdp2")
    chosen = PlannedTraining(COST, BATCH, gpus=4, accumulated=8, batches=32, configured=(1, 4, 8), changes=changes)
    words = "python main.py fit --config prope.yaml --data.num_frames 8 --model.lora.r 16 --trainer.strategy fsdp2"
    assert launch(given, chosen) == f"{words} --trainer.devices 4"
    assert launch(given, chosen.on(16)) == f"srun {words} --trainer.devices 8 --trainer.num_nodes 2 {ACCUMULATE} 2"
