"""A finished test is replaced by the same test alone: one with other settings gets a folder inside the run's."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from breakable import QUESTIONS, Tiny, run
from lightning.pytorch.callbacks import Callback
from test_broken_off import StopAfter, log, on_disk, results
from toy import Toy, trainer

from callbacks import MetricsCallback, PredictionsCallback, predictions, results_folder
from datamodules import Duplicate


class OtherWeights(Callback):
    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        with torch.no_grad():
            pl_module.weight.add_(1)


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("scenes")
    Tiny(root).prepare()
    return root


@pytest.fixture(scope="module")
def tested(scenes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tested")
    run(folder, scenes)
    return folder


@pytest.fixture
def finished(tested: Path, tmp_path: Path) -> dict[str, bytes]:
    """The files of a finished test, which is in the folder."""
    shutil.copytree(tested, tmp_path, dirs_exist_ok=True)
    return results(tmp_path)


def inside(folder: Path) -> list[Path]:
    return sorted(folder.glob("test-*"))


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("subset-20", {"subset": 20}),
        ("num_frames-4", {"num_frames": 4}),
        ("scorer-thinking_in_space", {"scorer": "thinking_in_space"}),
        ("frame_pairing-Duplicate", {"frame_pairing": Duplicate()}),
        ("weights", {"callback": OtherWeights()}),
    ],
)
def test_other_settings_leave_the_finished_test_as_it_is(
    name: str, settings: dict[str, Any], finished: dict[str, bytes], scenes: Path, tmp_path: Path
) -> None:
    others = dict(settings)
    callbacks = [others.pop("callback")] if "callback" in others else []
    run(tmp_path, scenes, *callbacks, **others)
    assert results(tmp_path) == finished
    (folder,) = inside(tmp_path)
    assert folder.name.startswith(f"test-{name}-") and results(folder) != finished
    if "subset" in settings:
        assert len(on_disk(folder)) == 20 < len(on_disk(tmp_path))
        assert json.loads((folder / "metrics.json").read_text())["counts"]["questions"] == 20


def test_the_same_settings_replace_the_test_in_either_folder(
    finished: dict[str, bytes], scenes: Path, tmp_path: Path
) -> None:
    run(tmp_path, scenes)
    assert inside(tmp_path) == [] and len(log(tmp_path)) == 2 * len(QUESTIONS)
    run(tmp_path, scenes, subset=20)
    (folder,) = inside(tmp_path)
    before = results(folder)
    (folder / "metrics.json").write_text("{}")
    run(tmp_path, scenes, subset=20)
    assert inside(tmp_path) == [folder] and results(folder) == before and results(tmp_path) == finished
    run(tmp_path, scenes, subset=21)
    assert len(inside(tmp_path)) == 2


def test_a_test_that_ends_before_its_folder_is_locked_is_kept(
    finished: dict[str, bytes], scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    running, ended = tmp_path / results_folder.UNFINISHED, tmp_path / results_folder.SETTINGS
    ended.rename(running)

    def choose(*words: Any) -> Path:
        chosen = results_folder.choose_folder(*words)
        if running.exists():
            running.rename(ended)
        return chosen

    monkeypatch.setattr(predictions, "choose_folder", choose)
    run(tmp_path, scenes, subset=20)
    assert results(tmp_path) == finished and len(inside(tmp_path)) == 1


def test_an_interrupted_test_with_other_settings_is_resumed(
    finished: dict[str, bytes], scenes: Path, tmp_path: Path
) -> None:
    run(tmp_path / "whole", scenes, subset=20)
    with pytest.raises(RuntimeError, match="stopped"):
        run(tmp_path, scenes, StopAfter(3), subset=20)
    (folder,) = inside(tmp_path)
    kept, begun = on_disk(folder), len(log(tmp_path))
    assert 0 < len(kept) < 20
    run(tmp_path, scenes, subset=20)
    assert inside(tmp_path) == [folder] and results(tmp_path) == finished
    assert results(folder) == results(tmp_path / "whole")
    again = {scene for _, scene, _ in log(tmp_path)[begun:]}
    assert not again & {record["scene"] for record in kept.values() if not record["error"]}


def test_a_new_fit_keeps_the_test_of_the_former_weights(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The run's own files are then those of the test of its own weights."""

    def fit(rate: float) -> Toy:
        model = Toy()
        model.configure_optimizers = lambda: torch.optim.SGD(model.parameters(), lr=rate)
        trainer(tmp_path, MetricsCallback(), PredictionsCallback(), max_epochs=1, limit_val_batches=0).fit(model)
        return model

    def test(model: Toy) -> dict[str, bytes]:
        trainer(tmp_path, MetricsCallback(), PredictionsCallback()).test(model, verbose=False)
        return results(tmp_path)

    first = test(fit(0.1))
    model = fit(0.2)
    (former,) = inside(tmp_path)
    assert results(former) == first and not (tmp_path / "metrics.json").exists()
    assert f"fit: the finished test of the former weights is now in {former}" in caplog.text
    second = test(model)
    assert inside(tmp_path) == [former] and results(former) == first
    assert second["predictions.settings.json"] != first["predictions.settings.json"]
    one, other = (json.loads(each["metrics.json"]) for each in (first, second))
    assert one["reproduction"].pop("weights") != other["reproduction"].pop("weights") and one == other


def test_a_fit_without_a_step_leaves_the_finished_test(finished: dict[str, bytes], tmp_path: Path) -> None:
    trainer(tmp_path, PredictionsCallback(), max_steps=0).fit(Toy())
    assert results(tmp_path) == finished and not inside(tmp_path)
