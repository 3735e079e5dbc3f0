"""Runs the trainings of a study: processes of `main.py`, here or on a SLURM cluster, and the folders they write.

A training has the folder `runs/studies/<study>/<setting>-<column>-<seed>`, and each of its tests a folder inside it.
The file study.json in a folder says for which options it was made. Other options take the next free name, so that
nothing finished is overwritten.
"""

from __future__ import annotations

import fcntl
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed, wait
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import count
from pathlib import Path
from threading import Event
from typing import Any, TypeVar
from urllib.parse import quote

from commands.main import LIGHTNING
from commands.responses.results import read_responses
from commands.runs import CONFIG, RESTARTED
from commands.studies.results import Questions, Result, read_result
from commands.studies.study_file import MACRO, OWN, STUDIES, Run, Study, as_words, test_folder_name
from run_folder.record import METRICS
from run_folder.results import TESTS, finished_tests
from zoo.cpu import available_cores
from zoo.errors import InputError
from zoo.files.atomic_io import try_lock, write_json
from zoo.files.ownership import file_name
from zoo.versions import ROOT, git_state
from zoo.weights.saved_models import LAST_CHECKPOINT

CLAIM, TRAINED, LOG = "study.json", "trained.json", "log.txt"
PROGRESS_S = 60.0  # seconds between two progress lines
POLL_S = 2.0
NOT_STARTED = "not started"
J = TypeVar("J")
_running: set[subprocess.Popen[bytes]] = set()
_interrupted = Event()  # ends the waiting of threads


@dataclass(frozen=True)
class Launch:
    """How main.py is started.

    Attributes:
        at_once: Number of jobs that share the cores of this machine.
        words: The command that starts main.py, such as `srun`, which then divides the cores.
    """

    at_once: int = 1
    words: tuple[str, ...] = ()

    @property
    def environment(self) -> dict[str, str]:
        """Variables of the processes that share the cores."""
        return {} if self.words else {"OMP_NUM_THREADS": str(max(1, available_cores() // self.at_once))}


# ---- One training with its tests -------------------------------------------------------------------------------------


class Training:
    """A training and its tests, in a folder of its own.

    Args:
        study: The plan.
        run: The training.
        is_recorded: Returns whether the study has the results of the training that ended at a time. Given for a setting
            that is trained again, whose recorded folders stay as they are. Else the tests are of the newest training.
    """

    def __init__(self, study: Study, run: Run, is_recorded: Callable[[str], bool] | None = None) -> None:
        self.run = run
        claim = {"options": run.resolved, "seed": run.seed, "words": list(run.words)}
        same = []  # folders of equal trainings
        for folder in _names(study.folder / run.folder_name):
            if not folder.exists():
                break
            if _is_same(_read(folder / CLAIM), claim):
                same.append(folder)
        ended = {each: trained["trained"] for each in same if (trained := _read(each / TRAINED)) is not None}
        if is_recorded is not None:
            unrecorded = (each for each in same if each not in ended or not is_recorded(ended[each]))
            folder = next(unrecorded, folder)
        elif ended:
            folder = max(ended, key=lambda each: ended[each])
        elif same:
            folder = same[0]
        self.folder, self._claim = folder, claim

    @property
    def tests(self) -> dict[str, Path]:
        """The folder of each test."""
        found = {}
        for test, options in self.run.tests.items():
            names = _names(self.folder / TESTS / test_folder_name(test))
            claim = {"options": options}
            found[test] = next(each for each in names if not each.exists() or _read(each / CLAIM) == claim)
        return found

    def execute(self, launch: Launch) -> str | None:
        """Train and test what is not finished; return the reason if that fails."""
        try:
            with locked(self.folder.with_name(f"{self.folder.name}.lock"), f"training in {self.folder}") as lock:
                return self._train(launch, lock) or self._test(launch, lock) or self._measure(launch, lock)
        except InputError as error:
            return str(error)

    def _train(self, launch: Launch, lock: int) -> str | None:
        if not (self.folder / CLAIM).exists():
            write_json(self.folder / CLAIM, self._claim)
        if (self.folder / TRAINED).exists():
            return None
        fit_s, checkpoint = None, self.folder / LAST_CHECKPOINT
        if self.run.is_trained:
            resumed, started = checkpoint.exists(), time.monotonic()
            root = f"--trainer.default_root_dir={self.folder}"
            if failure := main_py(self.folder / LOG, launch, lock, "fit", *self.run.words, root):
                return failure
            fit_s = None if resumed else round(time.monotonic() - started, 1)
        commit, is_clean = git_state()
        ended = datetime.now(UTC).isoformat(timespec="microseconds")
        trained = {"commit": (commit or "")[:12], "is_clean": bool(is_clean), "trained": ended, "fit_s": fit_s}
        write_json(self.folder / TRAINED, trained)
        return None

    def _test(self, launch: Launch, lock: int) -> str | None:
        weights = ["--config", str(self.folder / CONFIG), f"--ckpt_path={self.folder / LAST_CHECKPOINT}"]
        for test, folder in self.tests.items():
            if not finished_tests(folder):
                write_json(folder / CLAIM, {"options": self.run.tests[test]})
                words = ["test", *(weights if self.run.is_trained else self.run.words)]
                words += [*as_words(self.run.tests[test]), f"--trainer.default_root_dir={folder}"]
                if failure := main_py(self.folder / LOG, launch, lock, *words):
                    return failure
        return None

    def _measure(self, launch: Launch, lock: int) -> str | None:
        if {each.intervention for each in read_responses(self.folder)} >= {*self.run.responses}:
            return None
        words = ["measure-responses", str(self.folder), "--interventions", f"[{', '.join(self.run.responses)}]"]
        return main_py(self.folder / LOG, Launch(launch.at_once), lock, *words)  # in one process

    def results(self) -> list[tuple[Result, Questions]]:
        """Return the results of the finished tests.

        Raises:
            InputError: A test has no question with a ground truth.
        """
        if (trained := _read(self.folder / TRAINED)) is None or not _is_same(_read(self.folder / CLAIM), self._claim):
            return []
        found = []
        for test, folder in self.tests.items():
            if finished := finished_tests(folder):
                newest = max(finished, key=lambda each: (each / METRICS).stat().st_mtime)
                curve = learning_curve(self.folder, self.run.score) if test == OWN else ()
                responses = read_responses(self.folder) if test == OWN else ()
                found.append(read_result(self.run, test, newest, trained, curve, responses))
        return found


def learning_curve(folder: Path, score: str) -> list[tuple[int, float]]:
    """Return the steps of a run's validations and their scores, from the files of TensorBoard's logger."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator  # slow to import

    tag = f"val/all/{MACRO}" if score == MACRO else f"val/{score}"
    points: dict[int, float] = {}
    for file in sorted(folder.glob("events.out.tfevents.*")):  # one per start of the training
        events = EventAccumulator(str(file)).Reload()
        if tag in events.Tags()["scalars"]:
            points |= {each.step + 1: each.value for each in events.Scalars(tag)}  # Lightning counts from 0
    return sorted(points.items())


def _names(folder: Path) -> Iterator[Path]:
    """Yield a folder's name, and the names that follow it."""
    yield folder
    for number in count(2):
        yield folder.with_name(f"{folder.name}-{number}")


def _is_same(claim: Any, other: Mapping[str, Any]) -> bool:
    """Return whether two folders are of equal trainings, however their command lines spell it."""
    return isinstance(claim, dict) and all(claim.get(key) == other[key] for key in ("options", "seed"))


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


# ---- Files that trainings require ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Requirement:
    """A command that makes a file for the trainings.

    Studies may share the file. Its existence does not show that the command has ended, because an interrupted training
    leaves a checkpoint too. So `runs/studies/.requires/` records that. A file without a record was made by hand.

    Attributes:
        file: The file, as the study names it.
        command: The words after `main.py`.
        log: The file of the command's output.
    """

    file: str
    command: str
    log: Path

    def reads(self, other: Requirement) -> bool:
        """Return whether the command names another required file or its folder."""
        words = shlex.split(self.command.replace("=", " "))
        return other is not self and (other.file in words or str(Path(other.file).parent) in words)

    @property
    def _entry(self) -> Path:
        return STUDIES / ".requires" / f"{quote(os.path.normpath(self.file), safe='')}.json"

    def is_made(self) -> bool:
        """Return whether the file is there and whole.

        Raises:
            InputError: Another command has made it.
        """
        if not Path(self.file).exists() or (entry := _read(self._entry)) is None:
            return Path(self.file).exists()
        if entry["is_made"] and entry["command"] != self.command:
            raise InputError(
                f"`main.py {entry['command']}` has made {self.file}, not `main.py {self.command}`: remove it to have it"
                " made again"
            )
        return bool(entry["is_made"])

    def execute(self, launch: Launch) -> str | None:
        """Make the file; return the reason if that fails."""
        try:
            with locked(self._entry.with_suffix(".lock"), f"making {self.file}", waits=True) as lock:
                if self.is_made():  # by another study, meanwhile
                    return None
                entry = {"command": self.command, "is_made": False}
                write_json(self._entry, entry)
                words = shlex.split(self.command)
                if words[0] not in LIGHTNING:  # which alone run in several processes
                    launch = Launch(launch.at_once)
                if failure := main_py(self.log, launch, lock, *words):
                    return failure
                if not Path(self.file).exists():
                    return f"main.py {self.command} has not made {self.file}"
                write_json(self._entry, {**entry, "is_made": True})
        except InputError as error:
            return str(error)
        return None


def missing_requirements(study: Study, runs: Sequence[Run]) -> list[Requirement]:
    """Return the commands of the required files that are not made yet.

    Raises:
        InputError: Another command has made one of the files.
    """
    files = dict.fromkeys(file for run in runs for file in run.requires)
    named = ((file, study.folder / f"requires-{file_name(file)}.txt") for file in files)
    jobs = [Requirement(file, study.requires[file], log) for file, log in named]
    return [job for job in jobs if not job.is_made()]


def in_order(required: Sequence[Requirement]) -> Iterator[list[Requirement]]:
    """Yield the required files in groups: no command reads a file of its own group or of a later one."""
    rest = list(required)
    while rest:
        group = [job for job in rest if not any(map(job.reads, rest))] or rest  # a circle of commands fails by itself
        yield group
        rest = [job for job in rest if job not in group]


# ---- Mistakes that several trainings share ---------------------------------------------------------------------------


def check_commands(runs: Sequence[Run], required: Sequence[Requirement]) -> None:
    """Parse the options of trainings, of each test once, and of the commands for required files.

    Raises:
        InputError: An option, a value or a config is wrong. It names the training, the test or the file.
    """
    from commands.cli import check_options  # imports Lightning

    lines: dict[str, dict[str, tuple[str, ...]]] = {}
    for job in required:
        command, *words = shlex.split(job.command)
        if command in LIGHTNING:
            lines.setdefault(command, {})[job.file] = tuple(words)
    for run in runs:
        training = ", ".join(filter(None, (run.setting, run.column)))
        if run.is_trained:
            lines.setdefault("fit", {}).setdefault(training, run.words)
        for test, options in run.tests.items():
            name = test or ("its test" if run.is_trained else training)
            lines.setdefault("test", {}).setdefault(name, (*run.words, *as_words(options)))
    for command, words_by_name in lines.items():
        check_options(command, words_by_name)


def fail_alike(ended: Iterable[tuple[Run, str | None]]) -> bool:
    """Return whether trainings of two settings have failed with one message, and none has succeeded.

    Args:
        ended: Trainings, with the reason if one has failed.
    """
    settings: dict[str | None, set[str]] = {}
    for run, failure in ended:
        message = failure and failure.replace(run.folder_name, "")  # which is in the name of the log
        settings.setdefault(message, set()).add(run.setting)
    return None not in settings and any(len(alike) > 1 for alike in settings.values())


# ---- Processes -------------------------------------------------------------------------------------------------------


def at_once(jobs: Sequence[J], execute: Callable[[J], str | None], number: int) -> Iterator[tuple[J, str | None]]:
    """Execute jobs in threads, some at a time; yield each with the reason if it fails, as it ends.

    An interrupt ends the processes of the running jobs. It waits for them: a training saves its next complete step.
    """
    pool = ThreadPoolExecutor(number)
    _interrupted.clear()
    try:
        waiting = {pool.submit(execute, job): job for job in jobs}
        for future in as_completed(waiting):
            yield waiting[future], future.result()
    except BaseException:
        _interrupted.set()
        pool.shutdown(wait=False, cancel_futures=True)
        while not all(future.done() for future in waiting):
            while _running:
                _running.pop().terminate()  # once
            wait(waiting, POLL_S)  # then again: another thread may just have started a process
        raise
    finally:
        pool.shutdown()


def submit(script: Path) -> str | None:
    """Submit a file to SLURM and wait until its job has ended; return the reason if that fails."""
    try:
        process = subprocess.Popen(["sbatch", "--wait", str(script)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    except OSError as error:
        return f"sbatch can't be started ({error.strerror}): --executor slurm needs the login node of a SLURM cluster"
    _running.add(process)
    said = process.communicate()[0].decode(errors="replace").strip().splitlines()
    _running.discard(process)
    return f"{said[-1] if said else 'the job has failed'}, see {script}" if process.returncode else None


@contextmanager
def locked(path: Path, work: str, waits: bool = False) -> Iterator[int]:
    """Lock a file against other studies. A main.py that outlives this process keeps the lock.

    Args:
        path: The file.
        work: What the lock is for, for messages.
        waits: Wait for another process that has the lock.

    Raises:
        InputError: Another process has the lock; names what that process does.
    """
    is_said = False
    while (file := try_lock(path, is_inherited=True)) is None:
        if not waits or _interrupted.is_set():
            raise InputError(f"another process is {work}")
        if not is_said:
            print(f"waiting for another process that is {work}", flush=True)
        is_said = True
        _interrupted.wait(POLL_S)
    with file:
        try:
            yield file.fileno()
        finally:  # closing is not enough: a process that another thread is just starting has the file open as well
            with suppress(OSError):  # some file systems of clusters have no locks
                fcntl.flock(file, fcntl.LOCK_UN)


def main_py(log: Path, launch: Launch, lock: int, *words: str) -> str | None:
    """Run main.py with its output in a log; print the log's last line each minute, and return it if main.py fails.

    The process is in a group of its own, so that Ctrl-C in a terminal reaches the study alone. If it ends by SIGTERM,
    the study does so too: SLURM sends that signal before a job's time limit to the processes that srun has started.
    A `fit` goes on from the checkpoint in its folder, if there is one.

    Args:
        log: The file.
        launch: How main.py is started.
        lock: A file that stays open, and so locked, as long as main.py runs.
        words: The command line.

    Raises:
        SystemExit: main.py was sent SIGTERM.
    """
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    environment = os.environ | launch.environment | {"PYTHONPATH": path, RESTARTED: "1"}
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("a", encoding="utf-8") as file:
        print("main.py", shlex.join(words), file=file, flush=True)
        command = [*launch.words, sys.executable, "-m", "commands.main", *words]
        options: dict[str, Any] = {"stdin": subprocess.DEVNULL, "process_group": 0, "pass_fds": (lock,)}
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
    """Return the last line of a log."""
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines() if log.exists() else []
    return lines[-1] if lines else "no output"
