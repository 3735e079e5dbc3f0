"""configs/slurm: bash runs them with a faked srun and SLURM's variables; each line is explained in the guide."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.callbacks.breakable import LAUNCHERS
from tests.processes import free_port
from tests.test_two_processes import REPOSITORY, SMALL

FILES = sorted((REPOSITORY / "configs/slurm").glob("*.sbatch"))
FILES = [file for file in FILES if file.stem != "test"]  # tests/test_pages.py runs that one
JOB = {"SLURM_JOB_NAME": "mine", "SLURM_JOB_ID": "17", "SLURM_JOB_NUM_NODES": "1", "SLURM_CPUS_PER_TASK": "2"}


def start(file: Path, folder: Path, commands: dict[str, str], *words: str, tasks: int = 2) -> subprocess.Popen:
    """Start the script in a folder with commands of its own, as SLURM does with these variables."""
    (folder / "bin").mkdir()
    (folder / ".venv/bin").mkdir(parents=True)
    (folder / ".venv/bin/activate").touch()
    for name, does in commands.items():
        (folder / "bin" / name).write_text(f"#!/bin/bash\n{does}\n")
        (folder / "bin" / name).chmod(0o755)
    kept = {name: value for name, value in os.environ.items() if name != "ZOO_RUN"}
    environment = {**kept, **JOB, "SLURM_NTASKS_PER_NODE": str(tasks), "OMP_NUM_THREADS": "1"}
    environment["PATH"] = f"{folder / 'bin'}:{os.environ['PATH']}"
    return subprocess.Popen(["bash", str(file), *words], cwd=folder, env=environment)


@pytest.mark.parametrize("file", FILES, ids=lambda path: path.stem)
@pytest.mark.parametrize("protocol", [None, "", "--config protocol_vg_llm.yaml"])
def test_it_trains_and_tests_in_one_folder(
    file: Path, protocol: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The test is by a protocol, or if the variable is empty with the settings of the training."""
    monkeypatch.delenv("PROTOCOL", raising=False)
    if protocol is not None:
        monkeypatch.setenv("PROTOCOL", protocol)
    by = "--config protocol_spatial_mllm.yaml" if protocol is None else protocol
    srun = 'printf "%s " "$@" >> called; echo >> called'
    words = ("--data.datasets", "[a b]", "--config", "prope.yaml")
    assert start(file, tmp_path, {"srun": srun}, *words).wait(60) == 0
    root = "--trainer.devices 2 --trainer.num_nodes 1 --trainer.default_root_dir runs/mine-17 "
    assert (tmp_path / "called").read_text().splitlines() == [
        f"python main.py fit {' '.join(words)} {root}",
        f"python main.py test {by} {root}".replace("  ", " "),
    ]


@pytest.mark.parametrize(
    ("status", "step", "cancels"), [(143, "fit", False), (143, "test", False), (7, "fit", False), (143, "fit", True)]
)
def test_a_job_is_queued_again_at_its_time_limit_alone(status: int, step: str, cancels: bool, tmp_path: Path) -> None:
    """Its processes have time to save, and end with the status of SIGTERM; srun that gets it kills them at once."""
    file = REPOSITORY / "configs/slurm/requeue.sbatch"
    commands = {
        "srun": f'[ "$3" = {step} ] || exit 0\ntask &\necho $! > pid\ntrap "kill -KILL $!" TERM\nwait $!',
        "task": f'trap "kill \\$!; sleep 0.2; touch saved; exit {status}" TERM\ntouch started\nsleep 60 &\nwait',
        "scontrol": 'echo "$@" > requeued',
    }
    with start(file, tmp_path, commands) as job:
        while not ((pid := tmp_path / "pid").exists() and pid.read_text() and (tmp_path / "started").exists()):
            time.sleep(0.02)
        (is_for_script,) = re.findall("--signal=(B:)?TERM@", file.read_text())
        task = int(pid.read_text())
        for process in (job.pid, task) if cancels else (job.pid,) if is_for_script else (task,):
            os.kill(process, signal.SIGTERM)
    is_requeued = status == 143 and not cancels
    assert job.returncode == (-signal.SIGTERM if cancels else status)
    deadline = time.monotonic() + 10  # a script that is cancelled doesn't wait
    while not (saved := (tmp_path / "saved").exists()) and time.monotonic() < deadline:
        time.sleep(0.02)
    requeued = tmp_path / "requeued"
    assert saved and (requeued.read_text() if requeued.exists() else None) == ("requeue 17\n" if is_requeued else None)


@pytest.mark.slow
def test_two_processes_train_and_test_as_srun_starts_them(
    tmp_path: Path, rooms_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PROTOCOL", "")  # a protocol has more frames, and answers of 1,024 tokens
    port = free_port()
    ranks = [LAUNCHERS["SLURM"](rank, 2, port) for rank in range(2)]
    started = [" ".join(f"{key}={value}" for key, value in rank.items()) + ' "$@" &' for rank in ranks]
    srun = "\n".join(["children=()", *(f"{line}\nchildren+=($!)" for line in started)])
    srun += '\nfor child in "${children[@]}"; do wait $child || exit $?; done'
    python = f'shift; exec {sys.executable} {REPOSITORY / "main.py"} "$@"'
    words = ["--config", "qwen25_vl.yaml", *SMALL, "--data.source.root", str(rooms_root), "--trainer.max_steps", "2"]
    words += ["--trainer.strategy", "ddp"]
    file = REPOSITORY / "configs/slurm/one_node.sbatch"
    assert start(file, tmp_path, {"srun": srun, "python": python}, *words).wait(280) == 0
    (folder,) = (tmp_path / "runs").iterdir()
    metrics = json.loads((folder / "metrics.json").read_text())
    assert metrics["counts"]["questions"] > 10 and folder.name == "mine-17"
