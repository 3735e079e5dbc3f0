"""The real `main.py test`, killed at random moments, alone and under torchrun: minutes long, `pytest -m slow`."""

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

from tests.test_two_processes import REPOSITORY, SMALL, run

RESULTS = ("metrics.json", "predictions.jsonl", "predictions.settings.json")
TORCHRUN = ["-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", "29517"]


def command(processes: int) -> list[str]:
    launched = TORCHRUN if processes > 1 else []
    spread = ["--trainer.devices", "2", "--trainer.strategy", "ddp"] if processes > 1 else []
    return [sys.executable, *launched, str(REPOSITORY / "main.py"), "test", *spread]


def answered(folder: Path) -> set[str]:
    """The ids of the answers that are on disk: whole lines."""
    lines = [line for path in folder.glob("predictions*.jsonl") for line in path.read_bytes().split(b"\n")[:-1]]
    return {record["id"] for record in map(json.loads, lines) if not record["error"]}


@pytest.mark.slow
@pytest.mark.timeout(7200)
@pytest.mark.parametrize(("processes", "kills"), [(1, 100), (2, 10)])
def test_killed_at_random_moments_no_answer_is_lost(
    processes: int, kills: int, tmp_path: Path, rooms_root: Path
) -> None:
    run(
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
    run(tmp_path, "test")
    seconds = time.monotonic() - begun
    whole = {name: (folder / name).read_bytes() for name in RESULTS}

    chance, killed, tests, lost = random.Random(0), 0, 0, 0
    environment = {key: value for key, value in os.environ.items() if key != "ZOO_RUN"} | {"OMP_NUM_THREADS": "1"}
    while killed < kills:
        goes_on = (folder / "predictions.unfinished.json").exists()
        before = answered(folder) if goes_on else set()
        begun = time.monotonic()
        with (tmp_path / "output").open("w") as output:
            started = subprocess.Popen(
                command(processes), cwd=tmp_path, env=environment, stdout=output, stderr=output, start_new_session=True
            )
        try:
            assert started.wait(chance.uniform(0, 1.1 * seconds)) == 0, (tmp_path / "output").read_text()
            tests, seconds = tests + 1, time.monotonic() - begun  # as fast as the machine is now
            assert {name: (folder / name).read_bytes() for name in RESULTS} == whole
        except subprocess.TimeoutExpired:
            os.killpg(started.pid, signal.SIGKILL)  # torchrun's processes and the readers of videos as well
            started.wait()
            killed += 1
            if goes_on:
                lost += len(before - answered(folder))
    run(tmp_path, "test")  # goes on with the last one, or begins anew
    assert {name: (folder / name).read_bytes() for name in RESULTS} == whole
    print(f"{processes} process(es): {killed} kills, {tests + 1} tests done, {lost} answers lost")
    assert lost == 0
