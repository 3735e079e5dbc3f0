"""Compares the first losses of trainings with those of the present code, so that what it doesn't change stands."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest

from callbacks.first_losses import StopAfterFirstLosses, read_losses
from commands.studies.execution import execute_required
from commands.studies.executors import Executor
from commands.studies.jobs import RunJob
from commands.studies.processes import Launch
from commands.studies.results import Result, Results, Verification
from commands.studies.study_file import OWN, Run, Study
from zoo.versions import zoo_version

FOLDER = ".verify"  # below that of the study's runs
TOLERANCE = 1e-4  # of a loss
STOP = f"--trainer.callbacks+={StopAfterFirstLosses.__module__}.{StopAfterFirstLosses.__qualname__}"


@dataclass(frozen=True)
class FirstSteps(RunJob):
    """The first steps of a training, with the learning rates of the whole."""

    def prepare(self) -> None:
        """Empty the folder."""
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True)

    def __call__(self) -> str | None:
        """Train; return the reason if that fails."""
        return self.fit(STOP, "--trainer.limit_val_batches=0")


def verify(
    study: Study, runs: Sequence[Run], codes: Mapping[str, str], results: Results, executor: Executor, launch: Launch
) -> int:
    """Compare the trainings that other code has made, with a line for each; return how many differ or fail.

    One seed of each setting, column and former code is trained. Where it has the recorded losses, the results of all
    these seeds stand.

    Args:
        study: The plan.
        runs: The trainings.
        codes: The digest of the present code, by the command of a training.
        results: Where it is added that results stand.
        executor: Where the trainings run.
        launch: How main.py is started.
    """
    trained = [run for run in runs if run.is_trained]
    found = [(run, result) for run in trained if (result := results.find(run, OWN)) is not None]
    outdated = [(run, result) for run, result in found if results.is_outdated(result, codes[run.command])]
    groups: dict[tuple[str, ...], list[tuple[Run, Result]]] = {}
    for run, result in outdated:
        if result.first_losses:
            groups.setdefault((run.setting, run.column, result.code), []).append((run, result))
    current = f"{len(found) - len(outdated)} of {len(found)} trainings are of the present code, or verified with it"
    print(f"{current}; {len(groups)} to compare: one seed of each setting, column and former code", flush=True)
    if unknown := [run.setting for run, result in outdated if not result.first_losses]:
        settings = "; ".join(dict.fromkeys(unknown))
        print(f"{len(unknown)} can't be verified, since their losses were not recorded, of the settings {settings}")
    jobs, by_folder = [], {}
    for group in groups.values():
        run = group[0][0]
        jobs.append(FirstSteps(run, study.folder / FOLDER / run.folder_name, codes[run.command], launch))
        by_folder[jobs[-1].folder] = group
    num_failed = 0
    for done, (job, failure) in enumerate(execute_required(study, jobs, executor), 1):
        group = by_folder[job.folder]
        former, losses = group[0][1], read_losses(job.folder)
        difference = failure or first_difference(former.first_losses, losses)
        if difference is None:
            stands = [run.command for run, _ in group]
            results.add_verification(Verification(stands, former.code, job.code, zoo_version(), losses))
            shutil.rmtree(job.folder)
        else:
            num_failed += len(group)
        others = f" and {len(group) - 1} more" if len(group) > 1 else ""
        print(f"[{done}/{len(jobs)}] {job.run}{others}: {difference or 'the same losses'}", flush=True)
    return num_failed


def first_difference(recorded: Sequence[float], present: Sequence[float]) -> str | None:
    """Return the first step at which losses differ, with both; None if they are equal up to a tolerance."""
    for step, (before, now) in enumerate(zip_longest(recorded, present), 1):
        if before is None or now is None or not abs(before - now) <= TOLERANCE:  # also of no number
            return f"step {step}: the loss is {now}, and was {before}"
    return None
