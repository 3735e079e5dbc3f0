"""Trainings and tests that were broken off go on: the same folder, the same numbers, and no mixture."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.cli import Run, Trained, the_run, weights
from zoo import VideoQATask
from zoo.versions import versions
from zoo.weights.saved_models import initial_model


@pytest.mark.slow
def test_resuming_with_other_settings_is_an_error(run: Run, trained: Trained) -> None:
    config = trained() / "config.yaml"
    before = config.read_text()
    for setting, value in (
        ("data.num_frames", "6"),
        ("model.learning_rates.decoder", "1e-5"),
        ("data.source.trajectory", "local"),
        ("trainer.precision", "64-true"),
    ):
        with pytest.raises(SystemExit, match=f"was trained with another .*{setting}"):
            run("fit", "--config", "qwen25_vl.yaml", "--ckpt_path", "last", f"--{setting}", value)
    assert config.read_text() == before


class Interrupted(Exception):
    pass


LORA = ["--model.lora.r", "4"]
DROPOUT = [*LORA, "--model.lora.dropout", "0.5"]
MASKS = ["--model.objectives", "[LanguageModeling,MaskedViews]"]


@pytest.mark.slow
@pytest.mark.parametrize(  # an epoch has 3 steps
    ("stop_after", "extra"), [(3, DROPOUT), (2, MASKS), (4, LORA)], ids=["dropout-3", "masks-2", "lora-4"]
)
def test_a_resumed_run_equals_an_uninterrupted_one(
    stop_after: int, extra: list[str], run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    losses: list[float] = []
    training_step = VideoQATask.training_step

    def record(self: VideoQATask, batch: dict, batch_idx: int) -> torch.Tensor:
        if len(losses) == stop and stop:
            raise Interrupted
        loss = training_step(self, batch, batch_idx)
        losses.append(loss.item())
        return loss

    monkeypatch.setattr(VideoQATask, "training_step", record)
    words = [
        *("--config", "prope.yaml", *extra, "--trainer.max_steps", "7", "--trainer.limit_val_batches", "0"),
        *("--checkpoint.every_n_train_steps", "1"),
    ]
    stop = 0
    run("fit", *words, "--trainer.default_root_dir", "whole")
    whole, losses[:] = list(losses), []
    assert len(set(whole)) == len(whole) == 7

    stop = stop_after
    with pytest.raises(SystemExit, match="Interrupted"):
        run("fit", *words)
    stop = 0
    run("fit", *words, "--ckpt_path", "last")
    assert losses == whole
    resumed, reference = weights(the_run(tmp_path)), weights(tmp_path / "whole")
    assert resumed.keys() == reference.keys()
    assert all(torch.equal(resumed[name], reference[name]) for name in reference)
    decoder = {name for name in reference if ".language_model." in name}
    assert decoder and any("lora" in name for name in decoder) == (extra != MASKS)


@pytest.mark.slow
def test_a_fusion_is_fitted_when_a_training_begins_and_only_then(run: Run, tmp_path: Path) -> None:
    words = ["--config", "concat_split.yaml", "--model.fusion", "SubspaceFusion", "--trainer.limit_val_batches", "0"]
    run("fit", *words, "--seed_everything", "1")
    folder = the_run(tmp_path)

    def basis() -> torch.Tensor:
        return weights(folder)["model.fusion.basis"]

    fitted = basis()
    assert torch.allclose(fitted.mT @ fitted, torch.eye(64), atol=1e-5)
    assert not torch.allclose(fitted, torch.eye(64), atol=0.1)  # the control: an untrained one
    assert torch.equal(initial_model(folder).fusion.basis, fitted)  # `probe` compares models with the same basis
    run("fit", *words, "--seed_everything", "1", "--trainer.max_steps", "3", "--ckpt_path", "last")
    assert torch.load(folder / "checkpoints/last.ckpt", weights_only=True)["global_step"] == 3
    assert torch.equal(basis(), fitted)
    start = str(folder / "checkpoints/last.ckpt")
    for more, equal in ((["--model.initial_weights", start], True), ([], False)):
        run(
            "fit",
            *words,
            "--seed_everything",
            "2",
            "--trainer.default_root_dir",
            str(tmp_path / f"other-{equal}"),
            *more,
        )
        other = weights(tmp_path / f"other-{equal}")["model.fusion.basis"]
        assert torch.equal(other, fitted) == equal


@pytest.mark.slow
def test_a_test_of_unfinished_weights_says_so(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    training_step = VideoQATask.training_step

    def interrupted(self: VideoQATask, batch: Any, batch_idx: int) -> torch.Tensor:
        if self.trainer.global_step == 2:
            raise Interrupted
        return training_step(self, batch, batch_idx)

    def tested(*words: str) -> tuple[dict[str, Any], str]:
        said = run("test", *words, logged=True)
        newest = max(the_run(tmp_path).rglob("metrics.json"), key=lambda path: path.stat().st_mtime_ns)
        return json.loads(newest.read_text()), said

    words = [*("--config", "prope.yaml", "--trainer.max_steps", "4"), *("--checkpoint.every_n_train_steps", "1")]
    with monkeypatch.context() as patch, pytest.raises(SystemExit, match="Interrupted"):
        patch.setattr(VideoQATask, "training_step", interrupted)
        run("fit", *words)
    trained, said = tested()
    found = {name: trained[name] for name in ("step", "run_step", "max_steps", "training_versions")}
    assert found == {"step": 2, "run_step": 2, "max_steps": 4, "training_versions": versions()}
    assert "test: unfinished weights: their training has made 2 of 4 steps" in said
    former = (the_run(tmp_path) / "metrics.json").read_text()
    run("fit", *words, "--trainer.log_every_n_steps", "7", "--ckpt_path", "last")
    assert "log_every_n_steps: 7" in (the_run(tmp_path) / "config.yaml").read_text()
    trained, said = tested()
    assert (the_run(tmp_path) / "metrics.json").read_text() == former  # that of the former weights
    assert [folder.name for folder in (the_run(tmp_path) / "tests").iterdir()] == ["step-4"]
    assert (trained["step"], trained["run_step"]) == (4, 4) and "unfinished weights" not in said


# ---- Tests

RESULTS = ("metrics.json", "predictions.jsonl", "test.json")


def break_off(run: Run, patch: pytest.MonkeyPatch, *words: str, after: int = 1) -> None:
    """Runs a test that ends with an exception after some scenes."""
    step = VideoQATask.test_step

    def pulled(self: VideoQATask, batch: dict[str, Any], batch_idx: int) -> Any:
        if batch_idx == after:
            raise Interrupted
        return step(self, batch, batch_idx)

    with patch.context() as context:
        context.setattr(VideoQATask, "test_step", pulled)
        with pytest.raises(SystemExit, match="Interrupted"):
            run("test", *words)


def results(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in RESULTS}


@pytest.mark.slow
def test_the_same_command_goes_on(run: Run, trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = trained()
    run("test")
    whole, repeated = results(folder), folder / "tests/repeat"
    break_off(run, monkeypatch)
    assert results(folder) == whole and not (repeated / "metrics.json").exists()
    kept = (repeated / "predictions.jsonl").read_text().splitlines()
    assert whole["predictions.jsonl"].decode().splitlines()[: len(kept)] == kept and len(kept) > 3

    # another test, by its settings or by the content of the checkpoint, has a folder of its own
    for words, name in ((["--data.num_frames", "6"], "num_frames-6"), (["--trainer.precision", "bf16-mixed"], "")):
        run("test", *words)
        assert (folder / "tests" / (name or "precision-bf16-mixed") / "metrics.json").exists()
    checkpoint = folder / "checkpoints/last.ckpt"
    shutil.copy(checkpoint, tmp_path / "former.ckpt")
    other = torch.load(checkpoint, weights_only=True)
    next(iter(other["state_dict"].values())).view(-1)[0] += 1
    torch.save(other, checkpoint)
    run("test")
    assert (folder / "tests/repeat-2/metrics.json").exists() and not (repeated / "metrics.json").exists()
    shutil.copy(tmp_path / "former.ckpt", checkpoint)

    asked: list[str] = []
    step = VideoQATask.test_step
    monkeypatch.setattr(
        VideoQATask,
        "test_step",
        lambda self, batch, i: asked.append(batch.records[0]["scene"]) or step(self, batch, i),
    )
    printed = run("test", "--data.num_workers", "0", "--data.questions_per_batch", "3", logged=True)
    questions = len(whole["predictions.jsonl"].splitlines())
    assert f"test: resumes with {len(kept)} of {questions} questions answered" in printed and len(asked) == 2
    found = results(repeated)
    assert results(folder) == whole and {name: found[name] for name in RESULTS[1:]} == {
        name: whole[name] for name in RESULTS[1:]
    }


@pytest.mark.slow
def test_a_test_without_a_run_is_found_again(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["--config", "qwen25_vl.yaml", "--model.allow_untrained", "true"]
    break_off(run, monkeypatch, *words)
    folder = the_run(tmp_path)
    kept = (folder / "predictions.jsonl").read_text().splitlines()
    break_off(run, monkeypatch, *words, "--data.num_frames", "6")
    (other,) = set((tmp_path / "runs").iterdir()) - {folder}  # another test, in a folder of its own
    assert f"test: run runs/{folder.name}," in run("test", *words, logged=True)
    assert (folder / "predictions.jsonl").read_text().splitlines()[: len(kept)] == kept and results(folder)
    assert not (other / "metrics.json").exists()
    break_off(run, monkeypatch, *words)
    assert len(list((tmp_path / "runs").iterdir())) == 3  # one that is done is not begun again in its folder
