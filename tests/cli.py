"""main.py as a user runs it, in an empty folder with a very small model."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import main

Run = Callable[..., str]
Trained = Callable[[], Path]


@pytest.fixture
def run(tmp_path: Path, rooms_root: Path, monkeypatch: pytest.MonkeyPatch, capsys, caplog) -> Run:
    """Runs main.py in an empty folder on the small rooms with a very small model; returns what it printed."""
    monkeypatch.chdir(tmp_path)
    small = [
        *("--trainer.max_steps", "2"),
        *("--data.source.root", str(rooms_root), "--data.source.scenes", "[6,2,3]", "--data.batch_size", "2"),
        *("--data.question_types", "null"),
        *("--model.backbone.layers", "2", "--model.backbone.hidden_size", "64", "--model.backbone.heads", "2"),
        *("--model.backbone.key_value_heads", "1", "--model.backbone.vision_hidden_size", "32"),
        *("--data.num_frames", "4", "--trainer.accelerator", "cpu"),
        *("--gallery.scenes", "0"),  # drawing takes a second
        *("--config", "data_rooms.yaml", "--config", str(tmp_path / "small_vggt.yaml")),
    ]
    random = {"class_path": "TinyVGGT", "init_args": {"path": None, "embed_dim": 16, "depth": 4, "num_heads": 2}}
    (tmp_path / "small_vggt.yaml").write_text(yaml.safe_dump({"model": {"init_args": {"geometry": random}}}))

    def call(command: str, *words: str, sized: bool = True, logged: bool = False) -> str:
        monkeypatch.delenv("ZOO_RUN", raising=False)
        caplog.clear()
        bare = command != "fit" and "--config" not in words  # the newest run's config has the sizes
        monkeypatch.setattr(sys, "argv", ["main.py", command, *(small if sized and not bare else []), *words])
        main.main()
        return caplog.text if logged else capsys.readouterr().out

    return call


@pytest.fixture(scope="session")
def trained_runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that tests share; the first of them trains it."""
    return tmp_path_factory.mktemp("trained") / "runs"


@pytest.fixture
def trained(run: Run, tmp_path: Path, trained_runs: Path) -> Trained:
    """Puts a run of `fit --config qwen25_vl.yaml` into the folder of a test, a copy of the one run; returns it."""

    def call() -> Path:
        if not trained_runs.exists():
            run("fit", "--config", "qwen25_vl.yaml")
            shutil.copytree(tmp_path / "runs", trained_runs)
        else:
            shutil.copytree(trained_runs, tmp_path / "runs", dirs_exist_ok=True)
        return the_run(tmp_path)

    return call


def the_run(tmp_path: Path) -> Path:
    (folder,) = (tmp_path / "runs").iterdir()
    return folder


def weights(run: Path) -> dict[str, torch.Tensor]:
    return torch.load(run / "checkpoints/last.ckpt", weights_only=True)["state_dict"]


def losses_of(folder: Path) -> dict[int, set[float]]:
    """The training losses that were logged, by step, of all processes that trained the run."""
    found: dict[int, set[float]] = {}
    for file in folder.glob("events.out.tfevents.*"):
        events = EventAccumulator(str(file))
        events.Reload()
        for event in events.Scalars("train/loss") if "train/loss" in events.Tags()["scalars"] else ():
            found.setdefault(event.step, set()).add(event.value)
    return found
