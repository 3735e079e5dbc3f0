"""`main.py test`, broken off and run again: the same folder, the same results, and no mixture."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.cli import Run, Trained, the_run
from zoo import VideoQATask

RESULTS = ("metrics.json", "predictions.jsonl", "test.json")


class PulledPlug(Exception):
    pass


def break_off(run: Run, patch: pytest.MonkeyPatch, *words: str, after: int = 1) -> None:  # noqa: F811
    """Runs a test that ends with an exception after some scenes."""
    step = VideoQATask.test_step

    def pulled(self: VideoQATask, batch: dict[str, Any], batch_idx: int) -> Any:
        if batch_idx == after:
            raise PulledPlug
        return step(self, batch, batch_idx)

    with patch.context() as context:
        context.setattr(VideoQATask, "test_step", pulled)
        with pytest.raises(SystemExit, match="PulledPlug"):
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
def test_a_test_without_a_run_is_found_again(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
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
