"""A training starts from the weights of another: of the same model, or of one without some of its parts."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning import Trainer
from lightning.pytorch.strategies import SingleDeviceStrategy
from torch.utils.data import DataLoader

from tests.zoo.released import load_case, official_weights, write_release
from tests.zoo.sharded import SMALL
from zoo import (
    GRPO,
    CameraPrediction,
    ConcatSplitMLLM,
    DatasetGeometry,
    DepthPrediction,
    InputError,
    LearningRates,
    MaskedViews,
    PretrainedQwen25VL,
    Qwen25VL,
    SpatialMLLM,
    Teacher,
    TeacherPose,
    TinyQwen3VL,
    TinyQwen25VL,
)
from zoo.tasks import VideoQATask


def built(kind: type[VideoQATask], seed: int, **options: Any) -> VideoQATask:
    torch.manual_seed(seed)
    return kind(backbone=TinyQwen25VL(**{**SMALL, "seed": seed}), **options)


def checkpoint_of(task: VideoQATask) -> dict[str, Any]:
    checkpoint = {"state_dict": dict(task.state_dict()), "global_step": 1}
    task._trainer = None
    task.on_save_checkpoint(checkpoint)
    return checkpoint


def start(task: VideoQATask, former: VideoQATask | None, path: Path, resumed: dict[str, Any] | None = None) -> None:
    """Begin a fit, as Lightning does: what it starts from comes before the checkpoint that it resumes."""
    strategy = SingleDeviceStrategy(torch.device("cpu"))
    strategy._lightning_module = task
    if former is not None:  # else the file is there
        torch.save(checkpoint_of(former), path)
    task.initial_weights = str(path)
    trainer: Any = SimpleNamespace(
        strategy=strategy, state=SimpleNamespace(fn="fit"), ckpt_path=None, accumulate_grad_batches=1
    )
    task._trainer = trainer
    task.configure_model()
    if resumed is not None:
        trainer.ckpt_path = "last.ckpt"
        task.on_load_checkpoint(resumed)
        task.load_state_dict(resumed["state_dict"])
    task.on_fit_start()


@pytest.mark.parametrize("beta", [None, 0.0, 0.1])
def test_a_resumed_run_reads_the_start_for_a_reference_alone(beta: float | None, tmp_path: Path) -> None:
    """By a Trainer, which learns late what it resumes; no step is taken."""
    first, last = tmp_path / "first.ckpt", tmp_path / "last.ckpt"
    torch.save(checkpoint_of(former := built(Qwen25VL, 1)), first)
    options: dict[str, Any] = {"initial_weights": str(first)} | ({} if beta is None else {"algorithm": GRPO(beta=beta)})
    quiet: dict[str, Any] = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar"), False)

    def fit(seed: int, ckpt_path: Path | None = None) -> tuple[Trainer, VideoQATask]:
        trainer, task = (
            Trainer(accelerator="cpu", max_steps=1, limit_train_batches=0, **quiet),
            built(Qwen25VL, seed, **options),
        )
        trainer.fit(task, DataLoader([0], None), ckpt_path=ckpt_path)
        return trainer, task

    trainer, task = fit(2)
    assert all(torch.equal(tensor, former.state_dict()[name]) for name, tensor in task.state_dict().items())
    with torch.no_grad():
        task.model.backbone.lm_head.weight += 1.0
    trainer.save_checkpoint(last)
    _, resumed = fit(3, last)
    assert all(torch.equal(tensor, task.state_dict()[name]) for name, tensor in resumed.state_dict().items())
    first.unlink()
    if beta:
        with pytest.raises(InputError, match="first.ckpt"):
            fit(4, last)
    else:
        fit(4, last)
    with pytest.raises(InputError, match="first.ckpt"):  # the control: a new run
        fit(4)


def test_parts_that_the_start_lacks_keep_their_weights(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    former, task = built(Qwen25VL, 1), built(SpatialMLLM, 2)
    own = {name: tensor.clone() for name, tensor in task.state_dict().items()}
    with caplog.at_level("INFO"):
        start(task, former, tmp_path / "a.ckpt")
    given, now = former.state_dict(), task.state_dict()
    assert given.keys() < now.keys() and all(name.startswith("model.fusion.") for name in now.keys() - given.keys())
    for name, tensor in now.items():
        assert torch.equal(tensor, given.get(name, own[name]))
    assert any(not torch.equal(own[name], tensor) for name, tensor in given.items())  # the control
    assert "a.ckpt lacks fusion, which start from their own weights" in caplog.text


def test_of_the_same_model_all_weights_are_taken(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    former, task = built(SpatialMLLM, 1), built(SpatialMLLM, 2)
    with caplog.at_level("INFO"):
        start(task, former, tmp_path / "a.ckpt")
    assert all(torch.equal(tensor, former.state_dict()[name]) for name, tensor in task.state_dict().items())
    assert "lacks" not in caplog.text


@pytest.mark.parametrize(("former", "kind"), [(SpatialMLLM, Qwen25VL), (SpatialMLLM, ConcatSplitMLLM)])
def test_a_start_with_other_parts_is_an_error(
    former: type[VideoQATask], kind: type[VideoQATask], tmp_path: Path
) -> None:
    """With a fusion that the model lacks, or another one: what is there can't be told from what is damaged."""
    with pytest.raises(InputError, match=r"a.ckpt: .* of another model"):
        start(built(kind, 2), built(former, 1), tmp_path / "a.ckpt")


def test_heads_and_tokens_of_a_training_alone_are_left_behind(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    former = built(Qwen25VL, 1, objectives=[MaskedViews(), DepthPrediction()])
    task = built(Qwen25VL, 2, objectives=[CameraPrediction(token=False)], algorithm=GRPO())
    with caplog.at_level("INFO"):
        start(task, former, tmp_path / "a.ckpt")
    assert "MaskedViews" in caplog.text and "DepthPrediction" in caplog.text and "CameraPrediction" in caplog.text
    given, now = former.state_dict(), task.state_dict()
    assert all(torch.equal(now[name], given[name]) for name in now if not name.startswith("model.objectives."))


@pytest.mark.parametrize("use", ["training", "always"])
def test_a_token_in_the_prompts_of_a_test_is_not_left_behind(use: Any, tmp_path: Path) -> None:
    """GRPO follows GeoVR's training, whose tokens no test has; without one that tests have, prompts would be others."""
    former, task = (
        VideoQATask(backbone=TinyQwen3VL(**SMALL), teacher=Teacher(DatasetGeometry), **options)
        for options in ({"objectives": [TeacherPose(use)]}, {"objectives": [TeacherPose("none")], "algorithm": GRPO()})
    )
    if use == "always":
        with pytest.raises(InputError, match="TeacherPose.token"):
            start(task, former, tmp_path / "a.ckpt")
        return
    start(task, former, tmp_path / "a.ckpt")
    head = {name: tensor for name, tensor in task.state_dict().items() if "TeacherPose.head" in name}
    assert head and all(torch.equal(tensor, former.state_dict()[name]) for name, tensor in head.items())


def test_weights_that_a_training_starts_from_are_saved_where_they_are_frozen(tmp_path: Path) -> None:
    """Though released files have weights of these names, they are others."""
    config = load_case("qwen_one_video")[0]["config"]
    write_release(tmp_path / "qwen", config["qwen"] | {"model_type": "qwen2_5_vl"}, official_weights(config, False))

    def of_release(**options: Any) -> VideoQATask:
        return Qwen25VL(backbone=PretrainedQwen25VL(str(tmp_path / "qwen")), **options)

    former, frozen = of_release(), {"learning_rates": LearningRates(decoder=None)}
    with torch.no_grad():
        for parameter in former.parameters():
            if parameter.requires_grad:
                parameter += 1.0
    decoder = [name for name in checkpoint_of(former)["state_dict"] if former.part_of(name) == "decoder"]
    task = of_release(**frozen)
    assert decoder and not set(decoder) & set(checkpoint_of(task)["state_dict"])  # the control: files have them
    start(task, former, tmp_path / "a.ckpt")
    first = checkpoint_of(task)
    # a test, and a resumed training that saves again
    tested, resumed = of_release(**frozen), of_release(**frozen)
    given = former.state_dict()
    tested.load_state_dict(first["state_dict"])
    resumed.load_state_dict(first["state_dict"])
    for found in (tested.state_dict(), checkpoint_of(resumed)["state_dict"]):
        assert all(torch.equal(found[name], given[name].to(found[name].dtype)) for name in decoder)


def test_a_reference_is_that_of_the_start_or_an_error(tmp_path: Path) -> None:
    former, other = built(Qwen25VL, 1), built(Qwen25VL, 3)
    task = built(Qwen25VL, 2, algorithm=GRPO(beta=0.1))
    start(task, former, tmp_path / "a.ckpt")
    saved = checkpoint_of(task)
    shutil.copyfile(tmp_path / "a.ckpt", tmp_path / "moved.ckpt")
    start(built(Qwen25VL, 2, algorithm=GRPO(beta=0.1)), None, tmp_path / "moved.ckpt", saved)
    with pytest.raises(InputError, match=r"reference .*a\.ckpt"):  # the supervised run went on
        start(built(Qwen25VL, 2, algorithm=GRPO(beta=0.1)), other, tmp_path / "a.ckpt", saved)
    # without a reference nothing is read of it, and so in a test
    start(built(Qwen25VL, 2, algorithm=GRPO()), other, tmp_path / "a.ckpt", saved)
    built(Qwen25VL, 2, algorithm=GRPO(beta=0.1), initial_weights="absent.ckpt").on_load_checkpoint(saved)
