"""The real `main.py`, killed at random moments, with temporary files on another disk: minutes long, `pytest -m slow`.

ZOO_KILLS is the number of kills in percent of the full experiment: 100 of a test and 20 of a training.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from tests.callbacks.test_checkpoint_io import other_disk  # noqa: F401 - a fixture
from tests.cli import losses_of
from tests.test_two_processes import REPOSITORY, SMALL, launch

RESULTS = ("metrics.json", "predictions.jsonl", "test.json")
PERCENT = int(os.environ.get("ZOO_KILLS", "100"))
TORCHRUN = ["-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", "29517"]


def command(processes: int) -> list[str]:
    launched = TORCHRUN if processes > 1 else []
    spread = ["--trainer.devices", "2", "--trainer.strategy", "ddp"] if processes > 1 else []
    return [sys.executable, *launched, str(REPOSITORY / "main.py"), "test", *spread]


def answered(folder: Path) -> set[str]:
    """The ids of the answers that are on disk: whole lines."""
    lines = [line for path in folder.glob("predictions*.jsonl") for line in path.read_bytes().split(b"\n")[:-1]]
    return {record["id"] for record in map(json.loads, lines) if not record["error"]}


def environment_of(temporary: Path) -> dict[str, str]:
    kept = {key: value for key, value in os.environ.items() if key != "ZOO_RUN"}
    return kept | {"OMP_NUM_THREADS": "1", "TMPDIR": str(temporary)}


@pytest.mark.slow
@pytest.mark.timeout(7200)
@pytest.mark.parametrize(("processes", "kills"), [(1, 100), (2, 10)])
def test_killed_at_random_moments_no_answer_is_lost(
    processes: int,
    kills: int,
    tmp_path: Path,
    rooms_root: Path,
    other_disk: Path,  # noqa: F811
) -> None:
    launch(
        tmp_path,
        "fit",
        "--config",
        "prope.yaml",
        *SMALL,
        "--data.source.root",
        str(rooms_root),
        "--trainer.max_steps",
        "2",
    )
    (folder,) = (tmp_path / "runs").iterdir()
    begun = time.monotonic()
    launch(tmp_path, "test")
    seconds = time.monotonic() - begun
    whole = {name: (folder / name).read_bytes() for name in RESULTS}
    number = 1

    def tested() -> Path:
        """The folder of the next test: each that is done stays."""
        return folder / "tests" / ("repeat" if number == 1 else f"repeat-{number}")

    chance, killed, tests, lost = random.Random(0), 0, 0, 0
    environment = environment_of(other_disk)
    while killed < max(1, kills * PERCENT // 100):
        before = answered(tested())
        begun = time.monotonic()
        with (tmp_path / "output").open("w") as output:
            started = subprocess.Popen(
                command(processes), cwd=tmp_path, env=environment, stdout=output, stderr=output, start_new_session=True
            )
        try:
            assert started.wait(chance.uniform(0, 1.1 * seconds)) == 0, (tmp_path / "output").read_text()
            tests, seconds = tests + 1, time.monotonic() - begun  # as fast as the machine is now
            assert {name: (tested() / name).read_bytes() for name in RESULTS} == whole
            number += 1
        except subprocess.TimeoutExpired:
            os.killpg(started.pid, signal.SIGKILL)  # torchrun's processes and the readers of videos as well
            started.wait()
            killed += 1
            lost += len(before - answered(tested()))
    launch(tmp_path, "test")  # goes on with the last one, or begins anew
    assert {name: (tested() / name).read_bytes() for name in RESULTS} == whole
    print(f"{processes} process(es): {killed} kills, {tests + 1} tests done, {lost} answers lost")
    assert lost == 0


def wait_for_a_save(folder: Path, process: subprocess.Popen) -> None:
    while process.poll() is None and not list(folder.glob("checkpoints/.*.partial")):
        time.sleep(0.0005)


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_a_training_killed_at_random_moments_and_while_it_saves_ends_in_the_same_weights(
    tmp_path: Path,
    rooms_root: Path,
    other_disk: Path,  # noqa: F811
) -> None:
    """Each process trains at least a step, or is killed before it does."""
    steps = 30
    words = [
        *("fit", "--config", "prope.yaml", *SMALL, "--data.source.root", str(rooms_root)),
        *("--trainer.max_steps", str(steps), "--trainer.accumulate_grad_batches", "2"),
        *("--trainer.limit_val_batches", "0", "--trainer.log_every_n_steps", "1"),
        *("--checkpoint.every_n_train_steps", "1", "--trainer.default_root_dir"),
    ]
    begun = time.monotonic()
    launch(tmp_path, *words, "whole")
    seconds = time.monotonic() - begun
    whole, folder = losses_of(tmp_path / "whole"), tmp_path / "run"
    assert len(whole) == steps and all(len(values) == 1 for values in whole.values())

    chance, kills, during_saves, done, runs = random.Random(0), 0, 0, 0, 0
    last = folder / "checkpoints/last.ckpt"
    while kills < max(1, 20 * PERCENT // 100) or not done:
        resumed = ["--ckpt_path", str(last)] if last.exists() else []
        before = torch.load(last, weights_only=True)["global_step"] if resumed else 0
        with (tmp_path / "output").open("w") as output:
            command = [sys.executable, str(REPOSITORY / "main.py"), *words, "run", *resumed]
            started = subprocess.Popen(
                command,
                cwd=tmp_path,
                env=environment_of(other_disk),
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        if kills % 3 == 0:
            for _ in range(chance.randrange(1, 4)):
                wait_for_a_save(folder, started)
                time.sleep(chance.uniform(0, 0.02))
        else:
            time.sleep(chance.uniform(0.3, 0.9) * seconds)
        if started.poll() is None:
            os.killpg(started.pid, signal.SIGKILL)
            started.wait()
            during_saves, kills = during_saves + bool(list(folder.glob("checkpoints/.*.partial"))), kills + 1
            if last.exists() or before:
                assert torch.load(last, weights_only=True)["global_step"] >= before
        else:
            assert started.returncode == 0, (tmp_path / "output").read_text()
            done = torch.load(last, weights_only=True)["global_step"] == steps
            check(folder, tmp_path / "whole", whole, kills)
            runs += 1
            for file in folder.rglob("*"):
                if file.is_file():
                    file.unlink()
    print(f"{kills} kills, {during_saves} of them in a save, {runs} trainings done: equal losses and weights")
    assert during_saves >= kills // 6


def check(folder: Path, reference: Path, losses: dict[int, set[float]], kills: int) -> None:
    found_losses = losses_of(folder)
    assert all(losses[step] == values for step, values in found_losses.items())
    assert len(losses) - len(found_losses) <= kills  # a kill may lose the last values that were logged
    found, expected = (torch.load(run / "checkpoints/last.ckpt", weights_only=True) for run in (folder, reference))
    assert found["state_dict"].keys() == expected["state_dict"].keys()
    assert all(torch.equal(found["state_dict"][name], value) for name, value in expected["state_dict"].items())
