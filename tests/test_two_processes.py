"""`main.py` in two processes (gloo): the same numbers as in one, no question twice, one run folder."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

import main
from tests.callbacks.breakable import LAUNCHERS
from tests.cli import Run
from tests.processes import free_port
from zoo.weights.checkpoint import read_checkpoint
from zoo.weights.saved_models import LAST_CHECKPOINT

REPOSITORY = Path(main.__file__).parent
SMALL = [
    *("--config", "data_rooms.yaml"),
    *("--data.source.scenes", "[6,2,3]", "--data.question_types", "null", "--data.num_frames", "4"),
    *("--data.batch_size", "2", "--model.backbone.layers", "2", "--model.backbone.hidden_size", "64"),
    *("--model.backbone.heads", "2", "--model.backbone.key_value_heads", "1", "--trainer.accelerator", "cpu"),
    *("--gallery.scenes", "0"),  # drawing takes a second
]


def launch(folder: Path, *words: str) -> None:
    environment = {key: value for key, value in os.environ.items() if key != "ZOO_RUN"}
    environment |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)}  # for parts of the tests
    command = [sys.executable, str(REPOSITORY / "main.py"), *words]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=250)
    assert done.returncode == 0, done.stdout + done.stderr


def score_in_two(folder: Path, *words: str) -> None:
    """A test in two forks of this process, started as by torchrun: without the seconds of their imports."""
    port = free_port()

    def one(rank: int) -> None:
        os.chdir(folder)
        os.environ.update({name: str(value) for name, value in LAUNCHERS["torchrun"](rank, 2, port).items()})
        sys.argv = ["main.py", "test", *words]
        main.main()

    fork = multiprocessing.get_context("fork")
    started = [fork.Process(target=one, args=(rank,)) for rank in range(2)]
    for process in started:
        process.start()
    for process in started:
        process.join(120)
        assert process.exitcode == 0


def results(folder: Path) -> list[bytes]:
    return [(folder / name).read_bytes() for name in ("metrics.json", "predictions.jsonl", "test.json")]


@pytest.mark.slow
@pytest.mark.parametrize("fusion", ["ConcatSplitFusion", "SubspaceFusion"])
@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
def test_two_processes_train_and_score_as_one(
    strategy: str, fusion: str, run: Run, tmp_path: Path, rooms_root: Path
) -> None:
    data = ["--data.source.root", str(rooms_root), "--model.fusion", fusion]
    two = ["--trainer.devices", "2", "--trainer.strategy", strategy]
    launch(tmp_path, "fit", "--config", "prope.yaml", *SMALL, *data, *two, "--trainer.max_steps", "2")
    (folder,) = (tmp_path / "runs").iterdir()  # both processes wrote into the same one
    score_in_two(tmp_path, *two)
    together = results(folder)
    run("test", "--trainer.devices", "1", "--trainer.strategy", "auto", sized=False)
    assert results(folder) == results(folder / "tests/repeat") == together  # to the byte
    ids = [json.loads(line)["id"] for line in together[1].splitlines()]
    assert len(set(ids)) == len(ids) > 10
    run("export", "--out", "exported", sized=False)
    assert (tmp_path / "exported" / "model.safetensors").exists()


@pytest.mark.slow
def test_two_processes_fit_the_subspace_of_one(tmp_path: Path) -> None:
    """Also where a batch has as many scenes as a fit reads at least."""
    rooms = ("--data.source.root", str(tmp_path / "rooms"), "--data.source.scenes", "[48,2,3]")  # no test shares them
    words = [*SMALL, *rooms, "--data.batch_size", "16", "--model.fusion", "SubspaceFusion", "--trainer.max_steps", "1"]

    def basis(name: str, *own: str) -> torch.Tensor:
        launch(tmp_path, "fit", "--config", "prope.yaml", *words, *own, "--trainer.default_root_dir", name)
        return read_checkpoint(tmp_path / name / LAST_CHECKPOINT)["state_dict"]["model.fusion.basis"]

    two = basis("two", "--trainer.devices", "2", "--trainer.strategy", "ddp")
    one, other = (basis(f"one{steps}", "--trainer.accumulate_grad_batches", steps) for steps in ("2", "1"))
    assert torch.allclose(two, one, atol=1e-3)
    assert not torch.allclose(two, other, atol=1e-1)  # the control: of fewer scenes


def start_endless(folder: Path, rooms: Path, processes: int) -> list[subprocess.Popen]:
    """Starts a training as torchrun does, and waits for its first checkpoint."""
    port = free_port()
    words = ["fit", "--config", "qwen25_vl.yaml", *SMALL, "--data.source.root", str(rooms), "--trainer.max_steps", "-1"]
    words += ["--checkpoint.every_n_train_steps", "1"]
    words += ["--trainer.devices", str(processes), "--trainer.strategy", "ddp" if processes > 1 else "auto"]
    environment = {key: value for key, value in os.environ.items() if key != "ZOO_RUN"} | {"OMP_NUM_THREADS": "1"}
    started = []
    for rank in range(processes):
        launcher = LAUNCHERS["torchrun"](rank, processes, port) if processes > 1 else {}
        started.append(
            subprocess.Popen(
                [sys.executable, str(REPOSITORY / "main.py"), *words],
                cwd=folder,
                env=environment | {key: str(value) for key, value in launcher.items()},
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
        )
    while not list(folder.glob("runs/*/checkpoints/last.ckpt")) and all(each.poll() is None for each in started):
        time.sleep(0.2)
    return started


def outcome(process: subprocess.Popen) -> tuple[int, str]:
    """The exit status, and what was printed."""
    try:
        said, _ = process.communicate(timeout=60)
    finally:
        process.kill()
    return process.returncode, said


@pytest.mark.slow
@pytest.mark.parametrize(("processes", "stopped"), [(2, 1), (1, 0)])
def test_a_training_that_is_stopped_has_an_exit_status(
    processes: int, stopped: int, tmp_path: Path, rooms_root: Path
) -> None:
    """One process is asked to end, and all end."""
    started = start_endless(tmp_path, rooms_root, processes)
    started[stopped].terminate()
    statuses, (said, *_) = zip(*map(outcome, started), strict=True)
    assert set(statuses) == {128 + signal.SIGTERM} and "to go on: python main.py fit" in said


@pytest.mark.slow
def test_a_training_of_which_a_process_dies_ends_with_one_line(tmp_path: Path, rooms_root: Path) -> None:
    started = start_endless(tmp_path, rooms_root, 2)
    started[1].kill()
    (status, said), _ = map(outcome, started)
    assert status == 1 and "Traceback" not in said
    assert said.splitlines()[-1].startswith("error: another process of this run has ended, see its own error ")


@pytest.mark.slow
def test_a_second_run_of_a_job_replaces_nothing(tmp_path: Path, rooms_root: Path) -> None:
    words = ["fit", "--config", "prope.yaml", *SMALL, "--data.source.root", str(rooms_root), "--trainer.max_steps", "1"]
    command = [str(REPOSITORY / "main.py"), *words, "--trainer.devices", "2", "--trainer.strategy", "ddp"]
    environment = {key: value for key, value in os.environ.items() if key != "ZOO_RUN"} | {"OMP_NUM_THREADS": "1"}
    port, first = free_port(), dict[Path, bytes]()
    ranks = [{key: str(value) for key, value in LAUNCHERS["SLURM"](rank, 2, port).items()} for rank in range(2)]
    for _ in range(2):
        started = [subprocess.Popen([sys.executable, *command], cwd=tmp_path, env=environment | rank) for rank in ranks]
        assert [process.wait(250) for process in started] == [0, 0]
        assert all(path.read_bytes() == content for path, content in first.items())
        first = first or {path: path.read_bytes() for path in (tmp_path / "runs").rglob("*") if path.is_file()}
    checkpoints = list((tmp_path / "runs").glob("*/checkpoints/last.ckpt"))
    assert len(checkpoints) == len(list((tmp_path / "runs").iterdir())) == 2
