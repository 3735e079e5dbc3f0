"""The real `main.py`, killed at random moments, with temporary files on another disk.

ZOO_KILLS multiplies the number of kills: 20 makes it 100 of a test and 60 of a training.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
import torch

from tests.callbacks.test_checkpoint_io import other_disk  # noqa: F401 - a fixture
from tests.cli import losses_of, the_run, weights
from tests.processes import free_port
from tests.test_two_processes import REPOSITORY, SMALL, launch

RESULTS = ("metrics.json", "predictions.jsonl", "test.json")
TIMES = int(os.environ.get("ZOO_KILLS", "1"))
pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800 * TIMES)]


def start(folder: Path, temporary: Path, *words: str, processes: int = 1) -> subprocess.Popen:
    """Start main.py, by torchrun if it has several processes, in a process group of its own."""
    environment = {key: value for key, value in os.environ.items() if key != "ZOO_RUN"}
    environment |= {"OMP_NUM_THREADS": "1", "TMPDIR": str(temporary)}
    torchrun = ["-m", "torch.distributed.run", "--nproc-per-node", str(processes), "--master-port", str(free_port())]
    spread = ["--trainer.devices", str(processes), "--trainer.strategy", "ddp"]
    several = processes > 1
    command = [sys.executable, *(torchrun if several else []), str(REPOSITORY / "main.py"), *words]
    with (folder / "output").open("w") as output:
        streams = {"stdout": output, "stderr": output}
        command += spread if several else []
        return subprocess.Popen(command, cwd=folder, env=environment, start_new_session=True, **streams)


def kill(process: subprocess.Popen) -> None:
    """Kill a process with all that it has started: torchrun's processes have groups of their own."""
    started = psutil.Process(process.pid).children(recursive=True)
    for each in (process, *started):
        with suppress(psutil.NoSuchProcess):
            each.kill()
    process.wait()
    psutil.wait_procs(started)


def answered(folder: Path) -> set[str]:
    """The ids of the answers that are on disk: whole lines."""
    lines = [line for path in folder.glob("predictions*.jsonl") for line in path.read_bytes().split(b"\n")[:-1]]
    return {record["id"] for record in map(json.loads, lines) if not record["error"]}


def results(folder: Path) -> dict[str, str]:
    """The texts of a test's files, without the kernels of attention.

    A test that was killed after its last answer runs no model when it goes on, so it can't tell them.
    """
    texts = {name: (folder / name).read_text() for name in RESULTS}
    metrics = json.loads(texts["metrics.json"])
    del metrics["attention"]
    return texts | {"metrics.json": json.dumps(metrics)}


@pytest.mark.parametrize(("processes", "kills"), [(1, 5), (2, 2)])
def test_a_test_loses_no_answer(
    processes: int,
    kills: int,
    tmp_path: Path,
    rooms_root: Path,
    other_disk: Path,  # noqa: F811
) -> None:
    data = ("--data.source.root", str(rooms_root), "--trainer.max_steps", "2")
    launch(tmp_path, "fit", "--config", "prope.yaml", *SMALL, *data)
    folder = the_run(tmp_path)
    begun = time.monotonic()
    launch(tmp_path, "test")
    seconds = time.monotonic() - begun
    whole = results(folder)
    chance, killed, broken_off = random.Random(0), 0, 0
    names = ("repeat", *(f"repeat-{number}" for number in range(2, 100)))
    repeats = [folder / "tests" / name for name in names]

    def next_repeat() -> Path:
        """The folder in which the next test writes. A killed test may have been done already."""
        return next(path for path in repeats if not (path / "metrics.json").exists())

    while killed < kills * TIMES:
        tested = next_repeat()
        before, begun = answered(tested), time.monotonic()
        process = start(tmp_path, other_disk, "test", processes=processes)
        if killed % 2 == 0:  # between two answers
            while process.poll() is None and answered(tested) == before:
                time.sleep(0.002)
        else:
            with suppress(subprocess.TimeoutExpired):
                process.wait(chance.uniform(0.1, 1.1) * seconds)
        if process.poll() is None:
            kill(process)
            killed += 1
            assert before <= answered(tested)
            broken_off += bool(answered(tested))
        else:
            assert process.returncode == 0, (tmp_path / "output").read_text()
            assert (tested / "metrics.json").exists()
            seconds = time.monotonic() - begun  # as fast as the machine is now
    assert broken_off
    last = next_repeat()
    launch(tmp_path, "test")  # goes on with the last one, or begins anew
    done = [path for path in repeats if (path / "metrics.json").exists()]
    assert last in done
    for path in done:
        assert results(path) == whole, path
    print(f"{processes} process(es): {killed} kills, {broken_off} of them between answers, {len(done)} tests done")


def test_a_training_ends_in_the_same_weights(
    tmp_path: Path,
    rooms_root: Path,
    other_disk: Path,  # noqa: F811
) -> None:
    """It is killed while it saves and at other moments; each process trains at least a step, or is killed before."""
    steps, kills = 12, 3 * TIMES
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

    chance, killed, saving, last = random.Random(0), 0, 0, folder / "checkpoints/last.ckpt"
    is_done = False
    while killed < kills or not is_done:
        resumed = ["--ckpt_path", str(last)] if last.exists() else []
        before = torch.load(last, weights_only=True)["global_step"] if resumed else 0
        process = start(tmp_path, other_disk, *words, "run", *resumed)
        if killed >= kills:
            process.wait()
        elif killed % 3 == 0:
            while process.poll() is None and not list(folder.glob("checkpoints/.*.partial")):
                time.sleep(0.0005)
        else:
            time.sleep(chance.uniform(0.5, 0.9) * seconds)
        if process.poll() is None:
            saving += bool(list(folder.glob("checkpoints/.*.partial")))
            kill(process)
            killed += 1
            if last.exists() or before:
                assert torch.load(last, weights_only=True)["global_step"] >= before
        else:
            assert process.returncode == 0, (tmp_path / "output").read_text()
            is_done = torch.load(last, weights_only=True)["global_step"] == steps
            found, expected = losses_of(folder), weights(tmp_path / "whole")
            assert all(whole[step] == values for step, values in found.items())
            assert len(whole) - len(found) <= killed  # a kill may lose the last values that were logged
            assert all(torch.equal(tensor, expected[name]) for name, tensor in weights(folder).items())
            assert weights(folder).keys() == expected.keys()
            if killed < kills:  # anew
                for file in [path for path in folder.rglob("*") if path.is_file()]:
                    file.unlink()
    print(f"{killed} kills, {saving} of them in a save: equal losses and weights")
