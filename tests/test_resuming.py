"""A run that goes on where it was broken off."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.cli import Run, Trained, the_run, weights
from zoo import VideoQATask
from zoo.versions import versions


def test_resuming_with_other_settings_is_an_error(run: Run, trained: Trained) -> None:
    config = trained() / "config.yaml"
    before = config.read_text()
    for setting, value in (
        ("data.num_frames", "6"),
        ("model.learning_rates.decoder", "1e-5"),
        ("data.source.trajectory", "local"),
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
    ("stop_after", "extra"),
    [
        pytest.param(3, DROPOUT, id="dropout-3"),
        pytest.param(2, MASKS, id="masks-2"),
        *(pytest.param(steps, [], id=f"whole-{steps}") for steps in (2, 3, 4)),
        *(pytest.param(steps, LORA, id=f"lora-{steps}") for steps in (2, 3, 4)),
    ],
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
    assert decoder and any("lora" in name for name in decoder) == (extra != [] and extra != MASKS)


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
    words += ["--checkpoint.monitor", "train/loss", "--trainer.val_check_interval", "2"]
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
    best = the_run(tmp_path) / "checkpoints/best.ckpt"
    content = torch.load(best, weights_only=True)
    torch.save({**content, "trained": {**content["trained"], "step": 2}}, best)
    trained, said = tested("--ckpt_path", str(best))
    assert (trained["step"], trained["run_step"]) == (2, 4)  # the training that they are chosen of is finished
    assert "unfinished weights" not in said
