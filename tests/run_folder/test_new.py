"""The folder of a new run: one per run, whatever a job's processes share, and the same in all processes of one."""

from __future__ import annotations

import multiprocessing
import os
from pathlib import Path
from typing import Any

import pytest
import torch

from run_folder import new
from run_folder.new import (
    INHERITED,
    claim_for_training,
    launcher,
    make_folder,
    remove_unused,
    shared_folder,
)
from run_folder.record import CONFIG_START
from tests.callbacks.breakable import LAUNCHERS
from tests.processes import free_port
from zoo.errors import InputError
from zoo.files.ownership import make_if_absent


@pytest.fixture(autouse=True)
def empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv(INHERITED, raising=False)


def take_part(rank: int, environment: dict[str, Any], port: int, results: Any) -> None:
    """One process of a run: its folder, then a process group at the address of the launcher, as Lightning makes it."""
    os.environ.update({name: str(value) for name, value in environment.items()})
    folder = shared_folder(lambda: make_folder("Model"))
    address = f"tcp://localhost:{port}"
    torch.distributed.init_process_group("gloo", init_method=address, rank=rank, world_size=2)
    ranks: list[Any] = [None, None]
    torch.distributed.all_gather_object(ranks, rank)
    results.put((rank, str(folder), ranks))


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_two_runs_of_one_job_have_a_folder_each(launcher: str) -> None:
    fork, port = multiprocessing.get_context("fork"), free_port()
    folders = []
    for _ in range(2):  # job, step and port are the same
        results = fork.Queue()
        run = [(rank, LAUNCHERS[launcher](rank, 2, port), port, results) for rank in range(2)]
        started = [fork.Process(target=take_part, args=each, daemon=True) for each in run]
        for process in started:
            process.start()
        one, two = (results.get(timeout=120) for _ in started)
        assert one[1] == two[1] and one[2] == two[2] == [0, 1]
        for process in started:
            process.join(60)
        folders.append(one[1])
    assert sorted(folders) == sorted(str(path) for path in Path("runs").iterdir()) and len(set(folders)) == 2


@pytest.mark.slow
def test_processes_that_do_not_meet_are_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(new, "PATIENCE", new.timedelta(seconds=1))
    for name, value in LAUNCHERS["SLURM"](0, 2, free_port()).items():
        monkeypatch.setenv(name, str(value))
    with pytest.raises(InputError, match="did not meet at localhost:"):
        shared_folder(lambda: make_folder("Model"))
    with monkeypatch.context() as script:
        script.delenv("SLURM_STEP_ID")  # none are started: there is nothing to wait for
        with pytest.raises(InputError, match="this job has 2 tasks, .*: put srun before it"):
            shared_folder(lambda: make_folder("Model"))
        script.setenv("SLURM_NTASKS", "1")
        launcher()  # the control
    monkeypatch.delenv("SLURM_NTASKS_PER_NODE")
    with pytest.raises(InputError, match="--ntasks-per-node=2"):
        shared_folder(lambda: make_folder("Model"))


def test_a_folder_is_removed_by_the_process_that_made_it_while_it_is_unused() -> None:
    one, two, three = (make_folder("Model") for _ in range(3))  # within a second
    assert len({one, two, three}) == 3
    for folder, written, content in (
        (one, "predictions.jsonl", ""),
        (two, "predictions.jsonl", "{}\n"),
        (three, "checkpoints/last.ckpt", ""),
        (Path("runs/given"), "config.yaml", ""),
    ):
        (folder / written).parent.mkdir(parents=True, exist_ok=True)
        (folder / written).write_text(content)
        remove_unused(folder)
    assert {*Path("runs").iterdir()} == {two, three, Path("runs/given")}


@pytest.mark.parametrize("name", ["config.yaml", "train_scenes.txt", "skipped_scenes.jsonl"])
def test_a_training_replaces_no_file_of_the_user(name: str) -> None:
    project = Path("project")
    project.mkdir()
    (project / "notes.md").touch()
    assert claim_for_training(project, None) is not None  # the control: there is room for a run
    (project / name).write_text("dear: diary")
    with pytest.raises(InputError, match=f"project/{name} exists: move it away"):
        claim_for_training(project, None)
    (project / "config.yaml").write_bytes(CONFIG_START)  # a run that has ended before its first checkpoint
    assert claim_for_training(project, None) is not None


def train_in(folder: Path, start: Any, end: Any, results: Any) -> None:
    """One of several fits that are started in one folder at once."""
    start.wait()
    make_if_absent(folder)
    try:
        lock = claim_for_training(folder, None)
        (folder / "config.yaml").write_bytes(CONFIG_START)
        results.put("trains")
        end.wait()
        remove_unused(folder)
        del lock
    except InputError as error:
        remove_unused(folder)
        results.put(str(error))


@pytest.mark.slow
def test_of_fits_that_are_started_in_one_folder_one_trains() -> None:
    """The others leave its folder, also where one of them made it."""
    fork = multiprocessing.get_context("fork")
    for number in range(3):
        folder, results, start, end = Path(f"runs/{number}"), fork.Queue(), fork.Event(), fork.Event()
        started = [fork.Process(target=train_in, args=(folder, start, end, results), daemon=True) for _ in range(4)]
        for process in started:
            process.start()
        start.set()
        found = sorted(results.get(timeout=60) for _ in started)
        refusal = f"another process is training in {folder}: wait for it, or give another --trainer.default_root_dir"
        assert found == [*[refusal] * 3, "trains"] and (folder / "config.yaml").exists()
        end.set()
        for process in started:
            process.join(60)
        make_if_absent(folder)
        claim_for_training(folder, None)  # the lock is free
