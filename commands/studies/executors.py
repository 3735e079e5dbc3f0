"""Where the jobs of a study run: on this machine, or through submitit on a SLURM cluster."""

from __future__ import annotations

import operator
import os
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed, wait
from pathlib import Path
from typing import Any, TypeVar

from commands.studies.modules import ROOT
from commands.studies.processes import end_running
from zoo.errors import InputError

TIMEOUT_MIN, POLL_S = 24 * 60, 2  # submitit's own limit is 5 minutes
MAX_ARRAY = 1000  # jobs; SLURM's default limit is 1001


class Job(ABC):
    """Something to execute."""

    @abstractmethod
    def prepare(self) -> None:
        """Get ready; called once, in one process.

        Raises:
            InputError: It can't be executed now.
        """

    @abstractmethod
    def __call__(self) -> str | None:
        """Execute; return the reason if that fails. A job of several tasks calls it in each."""


J = TypeVar("J", bound=Job)


def _prepare(job: Job) -> str | None:
    """Prepare a job; return the reason if that fails."""
    try:
        job.prepare()
    except InputError as error:
        return str(error)
    return None


class LocalExecutor:
    """Processes of this machine.

    Args:
        at_once: Number of jobs at a time.
    """

    def __init__(self, at_once: int) -> None:
        self.at_once = at_once

    def execute(self, jobs: Sequence[J]) -> Iterator[tuple[J, str | None]]:
        """Run the jobs in this order; yield each, with the reason if it fails, as it ends."""

        def call(job: J) -> str | None:
            return _prepare(job) or job()

        pool = ThreadPoolExecutor(self.at_once)
        try:
            waiting = {pool.submit(call, job): job for job in jobs}
            for future in as_completed(waiting):
                yield waiting[future], future.result()
        except BaseException:  # an interrupt, or a job's time limit
            pool.shutdown(wait=False, cancel_futures=True)
            while not all(future.done() for future in waiting):
                end_running()  # again, what a job has started meanwhile
                wait(waiting, POLL_S)
            raise
        finally:
            pool.shutdown()


class SubmititExecutor:
    """One array of jobs of submitit.

    Args:
        at_once: Number of jobs at a time.
        cluster: Submitit's name for it: slurm, or local for processes of this machine.
        folder: Submitit's files.
        parameters: Of submitit's AutoExecutor, those of SLURM alone without the prefix `slurm_`.

    Raises:
        InputError: Submitit is not installed, there is no such cluster, or it refuses a parameter.
    """

    def __init__(self, at_once: int, cluster: str, folder: Path, parameters: Mapping[str, Any]) -> None:
        try:
            import submitit
        except ImportError as error:
            raise InputError("--executor: submitit is not installed: pip install 'spatial-vlm-zoo[slurm]'") from error
        self._as_completed = submitit.helpers.as_completed
        generic = submitit.AutoExecutor._typed_parameters()
        self._array = MAX_ARRAY if cluster == "slurm" else at_once  # else submitit starts all at once
        named = {name if name in generic else f"slurm_{name}": value for name, value in parameters.items()}
        try:
            self._executor = submitit.AutoExecutor(folder, cluster=cluster)
            self._executor.update_parameters(
                **{"slurm_array_parallelism": at_once, "timeout_min": TIMEOUT_MIN, **named}
            )
        except (AssertionError, NameError, RuntimeError, TypeError, ValueError) as error:
            raise InputError(f"--executor and --slurm: submitit refuses them: {error}") from error

    def execute(self, jobs: Sequence[J]) -> Iterator[tuple[J, str | None]]:
        """Run the jobs in this order; yield each, with the reason if it fails, as it ends."""
        ready = []
        for job in jobs:
            if reason := _prepare(job):
                yield job, reason
            else:
                ready.append(job)
        # a job imports this package, wherever the study was started
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
        for start in range(0, len(ready), self._array):
            array = ready[start : start + self._array]
            submitted = dict(zip(self._executor.map_array(operator.call, array), array, strict=True))
            for each in self._as_completed(list(submitted), poll_frequency=POLL_S):
                if failure := each.exception():  # the scheduler's, or a bug: its traceback is in the job's log
                    yield submitted[each], f"{str(failure).splitlines()[0]} (see {each.paths.stderr})"
                else:
                    yield submitted[each], each.results()[0]


Executor = LocalExecutor | SubmititExecutor
