"""Executes the trainings of a study, and keeps their results."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from commands.studies.executors import Executor
from commands.studies.jobs import Requirement, Training
from commands.studies.processes import Launch
from commands.studies.results import Results, load_result
from commands.studies.study_file import OWN, Run, Study, folder_name
from zoo.errors import InputError


def execute(
    study: Study,
    runs: Sequence[Run],
    codes: Mapping[str, str],
    results: Results,
    executor: Executor,
    launch: Launch,
    redo: bool = False,
) -> int:
    """Run trainings and add their results, with a line for each; return how many have failed.

    Args:
        study: The plan.
        runs: The trainings, in their order.
        codes: The digest of the present code, by the command of a training.
        results: Where the results are added.
        executor: Where they run.
        launch: How main.py is started.
        redo: Whether to replace weights that other code has trained.
    """

    def is_redone(run: Run) -> bool:
        known = [result for test in run.tests if (result := results.find(run, test)) is not None]
        return redo and not any(not results.is_outdated(result, codes[run.command]) for result in known)

    trainings = [
        Training(run, study.folder / run.folder_name, codes[run.command], launch, is_redone(run)) for run in runs
    ]
    unfinished, done, failed = [], 0, 0

    def report(training: Training, failure: str | None) -> None:
        nonlocal done, failed
        done += 1
        try:
            said = _collect(training, results)  # also of a training of which one test has failed
        except InputError as error:
            failure, said = failure or str(error), ""
        failed += failure is not None
        print(f"[{done}/{len(trainings)}] {training.run}: {f'failed: {failure}' if failure else said}", flush=True)

    for training in trainings:  # of an earlier command that ended before its jobs
        if len(training.finished_tests()) == len(training.run.tests):
            report(training, None)
        else:
            unfinished.append(training)
    for training, failure in execute_required(study, unfinished, executor):
        report(training, failure)
    return failed


def _collect(training: Training, results: Results) -> str:
    """Add the results of the finished tests, and describe the score."""
    run = training.run
    for test in training.finished_tests():
        result, questions = load_result(run, test, training.finished(test) or training.folder, training.trained())
        former = results.find(run, test)
        if former is not None and former.code == result.code and not result.version:
            result = replace(result, version=former.version)
        if not results.has_own(result):
            results.add(result, questions)
    own = results.find(run, OWN)
    if own is None or run.score not in own.scores:
        raise InputError(f"its test has no question of the score {run.score}")
    return f"{run.score} {own.scores[run.score]:.3f}" + ("" if own.fit_s is None else f" ({own.fit_s:.0f} s)")


def required(study: Study, runs: Sequence[Run], launch: Launch) -> list[Requirement]:
    """Return the commands that make what trainings require and is not made yet; they share the cores."""
    files = dict.fromkeys(file for run in runs for file in run.requires)
    jobs = [
        Requirement(file, study.requires[file], study.folder / f"requires-{folder_name(file)}.txt", launch)
        for file in files
    ]
    missing = [job for job in jobs if not job.is_made()]
    at_once = max(1, min(launch.at_once, len(missing)))
    return [replace(job, launch=launch._replace(at_once=at_once)) for job in missing]


def execute_required(
    study: Study, jobs: Sequence[Training], executor: Executor
) -> Iterator[tuple[Training, str | None]]:
    """Make the files that trainings require, then run them; yield each, with the reason if it fails, as it ends."""
    absent = {}
    launch = jobs[0].launch if jobs else Launch()
    for requirement, failure in executor.execute(required(study, [job.run for job in jobs], launch)):
        print(f"{requirement.file}: {failure or 'made'}", flush=True)
        if failure:
            absent[requirement.file] = f"it requires {requirement.file}: {failure}"
    ready = []
    for job in jobs:
        if reasons := [absent[file] for file in job.run.requires if file in absent]:
            yield job, reasons[0]
        else:
            ready.append(job)
    yield from executor.execute(ready)
