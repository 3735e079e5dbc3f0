"""A plan reads a run's configs and options, and is what a real training takes; errors are one line."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from torch.optim import Optimizer
from torch.profiler import ProfilerActivity, profile

import main
from commands.planning.tables import described
from commands.planning.training import Setup, Training, _devices, parse
from commands.studies.scripts import takes
from commands.studies.study_file import Run
from tests.commands.planning.made_cost import COST
from tests.zoo.live_bytes import most_live_bytes
from zoo import (
    Qwen25VL,
    TinyQwen25VL,
)
from zoo.sequences.batch import Batch
from zoo.tasks import training_cost
from zoo.tasks.training_cost import BatchSizes, total_bytes

CONFIGS = Path(main.__file__).parent / "configs"


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
