"""The processes of a study: `main.py` with its output in a log, and folders that one process at a time uses."""

from __future__ import annotations

import fcntl
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from commands.runs import RESTARTED
from commands.studies.modules import ROOT
from zoo.cpu import available_cores
from zoo.errors import InputError

PROGRESS_S = 60.0  # seconds between progress lines
_running: set[subprocess.Popen[bytes]] = set()


class Launch(NamedTuple):
    """How main.py is started.

    Attributes:
        at_once: Number of jobs that share the cores.
        words: What stands before it, such as `srun`, which then divides the cores.
    """

    at_once: int = 1
    words: tuple[str, ...] = ()

    @property
    def environment(self) -> dict[str, str]:
        """Variables of the processes that share the cores."""
        return {} if self.words else {"OMP_NUM_THREADS": str(max(1, available_cores() // self.at_once))}


@contextmanager
def locked(path: Path, work: str) -> Iterator[int]:
    """Lock a file against other studies; a main.py that outlives this process keeps the lock.

    Raises:
        InputError: Another process has it; names what that does.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise InputError(f"another process is {work}") from error
        try:
            yield file.fileno()
        finally:  # closing is not enough: a process that another thread is just starting has the file open as well
            fcntl.flock(file, fcntl.LOCK_UN)


def end_running() -> None:
    """Ask each main.py to end, once: a training saves its next complete step."""
    while _running:
        _running.pop().terminate()


def main_py(
    log: Path, launch: Launch, *words: str, keep_open: tuple[int, ...] = (), goes_on: bool = False
) -> str | None:
    """Run main.py with its output in a log, print the log's last line each minute, return it if main.py fails.

    It is in a process group of its own: Ctrl-C in a terminal reaches the study alone, which calls `end_running`.

    Where it ends by SIGTERM, this process does so too: before a job's time limit, SLURM sends it to what srun started.

    Args:
        log: The file.
        launch: How it is started.
        words: The command line.
        keep_open: Files that stay open as long as main.py runs.
        goes_on: Whether a `fit` goes on from the checkpoint in its folder, if there is one.

    Raises:
        SystemExit: It was sent SIGTERM.
    """
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    environment = os.environ | launch.environment | {"PYTHONPATH": path, RESTARTED: str(int(goes_on))}
    with log.open("a", encoding="utf-8") as file:
        print("main.py", shlex.join(words), file=file, flush=True)
        command = [*launch.words, sys.executable, "-m", "commands.main", *words]
        options: dict[str, Any] = {"stdin": subprocess.DEVNULL, "process_group": 0, "pass_fds": keep_open}
        with subprocess.Popen(command, stdout=file, stderr=file, env=environment, **options) as process:
            _running.add(process)
            try:
                while process.poll() is None:
                    try:
                        process.wait(PROGRESS_S)
                    except subprocess.TimeoutExpired:
                        print(f"{log}: {_last_line(log)}", flush=True)
            except BaseException:
                process.kill()
                raise
            finally:
                _running.discard(process)
    if process.returncode == 128 + signal.SIGTERM:
        print(f"{log}: {_last_line(log)}", flush=True)
        sys.exit(process.returncode)
    return f"{_last_line(log)} (all of it in {log})" if process.returncode else None


def _last_line(log: Path) -> str:
    return log.read_text(encoding="utf-8", errors="replace").splitlines()[-1]
