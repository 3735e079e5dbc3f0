"""FSDP2 in two processes (gloo): the losses, gradients, checkpoints and answers of DDP and of one process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock, patch

import pytest
import torch
from lightning import Trainer
from lightning.pytorch.trainer.states import TrainerFn

import main
from tests.zoo.asking import build
from tests.zoo.released import read_release
from zoo import InputError
from zoo.tasks.fsdp2 import FSDP2Strategy
from zoo.weights.checkpoint_file import read_checkpoint

REPOSITORY = Path(main.__file__).parent
FAST = ["every part"]
SLOW = ["lora", "spatial", "spatial, Qwen3-VL", "concat", "concat, Qwen3-VL", "prope", "pose axis"]
SLOW += ["baseline, Qwen3-VL", "released", "released, lora"]


def runs_of(chosen: list[str], folder: Path, rooms: Path, limit_s: int) -> Path:
    words = ["-m", "tests.zoo.sharded", str(folder), str(rooms), *chosen]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run(
        [sys.executable, *words], cwd=folder, env=environment, capture_output=True, text=True, timeout=limit_s
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return folder


@pytest.fixture(scope="module")
def fast(tmp_path_factory: pytest.TempPathFactory, rooms_root: Path) -> Path:
    return runs_of(FAST, tmp_path_factory.mktemp("fast"), rooms_root, 250)


@pytest.fixture(scope="module")
def slow(tmp_path_factory: pytest.TempPathFactory, rooms_root: Path) -> Path:
    return runs_of(SLOW, tmp_path_factory.mktemp("slow"), rooms_root, 1700)


def records(folder: Path) -> list[dict[str, Any]]:
    return [torch.load(path, weights_only=False) for path in sorted(folder.glob("record.rank*"))]


@pytest.mark.parametrize(("size", "is_refused"), [(1, False), (2, True)])
def test_a_geometry_encoder_is_called_equally_often_by_all_processes(
    size: int, is_refused: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    task, strategy = build("AddFusion"), FSDP2Strategy()
    strategy._lightning_module = task
    trainer: Any = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False)
    trainer.state.fn, trainer.datamodule, task.trainer = TrainerFn.FITTING, SimpleNamespace(batch_size=size), trainer
    monkeypatch.setattr(FSDP2Strategy, "root_device", property(Mock(side_effect=KeyboardInterrupt)))  # gets this far
    with pytest.raises(InputError if is_refused else KeyboardInterrupt), strategy.model_sharded_context():
        pass


def check(case: Path) -> None:
    found = {run: records(case / run) for run in ("one", "ddp", "fsdp2", "resumed")}
    # 1. Losses: those of one process take turns in two.
    losses = {run: [loss for step in zip(*(r["losses"] for r in ranks), strict=True) for loss in step]
              for run, ranks in found.items()}  # fmt: skip
    assert losses["fsdp2"] == pytest.approx(losses["one"], rel=1e-4) and losses["ddp"] == pytest.approx(losses["one"])
    assert losses["resumed"] == pytest.approx(losses["fsdp2"][2:], rel=1e-4)
    assert losses["fsdp2"][:2] != pytest.approx(losses["fsdp2"][2:], rel=1e-4)  # the control
    # 2. Gradients, whole, on each process.
    one = found["one"][0]["gradients"]
    for ranks in (found["ddp"], found["fsdp2"]):
        for step, expected in enumerate(one):
            for gradients in (rank["gradients"][step] for rank in ranks):
                assert gradients.keys() == expected.keys()
                for name, gradient in gradients.items():
                    torch.testing.assert_close(gradient, expected[name], rtol=1e-3, atol=1e-5, msg=name)
    # 3. Each process trains about half.
    total = sum(gradient.numel() for gradient in one[0].values())
    shares = [rank["local"] for rank in found["fsdp2"]]
    assert sum(shares) == total and max(shares) < 0.6 * total
    assert found["fsdp2"][0]["class"] == found["one"][0]["class"]
    # 4. Checkpoints.
    saved = {run: read_checkpoint(case / run / "checkpoints" / "last.ckpt") for run in found}
    for run in ("ddp", "fsdp2", "resumed"):
        torch.testing.assert_close(saved[run]["state_dict"], saved["one"]["state_dict"], rtol=1e-3, atol=1e-4)
        assert saved[run]["task"] == saved["one"]["task"]
    # 5. Answers: every question once, on uneven shares of scenes.
    lines = {run: (case / run / "predictions.jsonl").read_text().splitlines() for run in ("one", "ddp", "fsdp2")}
    answers = {run: {line["id"]: line["prediction"] for line in map(json.loads, each)} for run, each in lines.items()}
    assert len(lines["fsdp2"]) == len(lines["one"]) == len(answers["one"]) > 3
    assert answers["fsdp2"].keys() == answers["ddp"].keys() == answers["one"].keys()
    # 6. What `export` writes of the checkpoints.
    if (case / "one" / "exported").exists():
        exported, expected = (read_release(case / run / "exported") for run in ("fsdp2", "one"))
        assert len(expected) > 50
        torch.testing.assert_close(exported, expected, rtol=1e-2, atol=1e-4)


@pytest.mark.parametrize("case", FAST)
def test_two_processes_with_shards_train_as_one(case: str, fast: Path) -> None:
    check(fast / case)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("case", SLOW)
def test_all_models_train_with_shards_as_without(case: str, slow: Path) -> None:
    check(slow / case)


@pytest.mark.parametrize("strategy", ["fsdp2", "ddp"])
def test_the_command_line_defers_weights_of_what_it_shards(
    strategy: str, tmp_path: Path, rooms_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    built: list[Any] = []

    def stop(cli: Any) -> None:
        built.append(cli.model)
        raise InputError("it is built")

    monkeypatch.setattr("commands.cli.ZooCLI.before_fit", stop)
    words = ["--config", "qwen25_vl.yaml", "--trainer.strategy", strategy, "--data.source.root", str(rooms_root)]
    monkeypatch.setattr(sys, "argv", ["main.py", "fit", *words])
    with patch.dict(os.environ), pytest.raises(SystemExit, match="it is built"):
        main.main()
    _, parts = built[0].model.__dict__["_constructor_arguments"]
    assert parts["defer_weights"] == (strategy == "fsdp2")


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (["--trainer.strategy", "fsdp"], "--trainer.strategy fsdp: FSDP1 is not supported, take fsdp2"),
        (["--config", "geometry_tiny.yaml", "--trainer.strategy", "fsdp2"], "not VGGTPretraining: take ddp"),
    ],
)
def test_what_cant_be_sharded_is_refused(
    words: list[str], error: str, tmp_path: Path, rooms_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    model = [] if "geometry_tiny.yaml" in words else ["--config", "qwen25_vl.yaml"]
    monkeypatch.setattr(sys, "argv", ["main.py", "fit", *model, *words, "--data.source.root", str(rooms_root)])
    # Lightning's launcher leaves its port and ranks in the environment, for processes that other tests start
    with patch.dict(os.environ), pytest.raises(SystemExit) as stop:
        main.main()
    assert error in str(stop.value.code)
