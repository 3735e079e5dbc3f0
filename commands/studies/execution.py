"""The steps of `main.py study`: find what has no result yet, train and test it, and write the document."""

from __future__ import annotations

import shlex
import sys
from collections import Counter
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from jsonargparse import Namespace

from commands.studies.document import Document
from commands.studies.oracles import add_oracles
from commands.studies.results import Results, open_results
from commands.studies.running import (
    NOT_STARTED,
    Launch,
    Requirement,
    Training,
    at_once,
    check_commands,
    fail_alike,
    in_order,
    missing_requirements,
    submit,
)
from commands.studies.scripts import PLAN, write_scripts
from commands.studies.study_file import OWN, Run, Study, check_names, read_study
from zoo.errors import add_file_to_errors


def run_study(asked: Namespace) -> None:
    """Run a study with the options of the command.

    Raises:
        InputError: The file or an option is wrong.
        SystemExit: Some trainings have failed.
    """
    plan = read_study(Path(asked.study).expanduser(), Path(asked.output).expanduser() if asked.output else None)
    results = _open(plan, asked)
    if asked.oracles:
        for remark in add_oracles(results):
            print(remark, flush=True)
    if (asked.oracles or asked.write) and not asked.dry_run:
        _write_document(plan)
        return

    # 1. What is missing, and whether its options are right.
    chosen = plan.runs(asked.settings, asked.columns, asked.seeds)
    todo = results.missing(chosen, asked.again)
    required = missing_requirements(plan, todo)
    print(f"{len(todo)} of {len(chosen)} trainings to run, {asked.jobs} at a time, in {plan.folder}/", flush=True)
    with add_file_to_errors(plan.path):
        check_commands(todo, required)
    if asked.dry_run:
        _list(todo, required)
        return
    is_slurm = asked.executor == "slurm"
    scripts = _write_scripts(plan, todo, asked) if is_slurm and todo else {}
    if scripts and asked.print_scripts:
        return

    # 2. Train and test it. The document is written also after an interrupt.
    execution = Execution(plan, results, asked, scripts)
    try:
        # jobs of SLURM make required files themselves
        absent = {} if is_slurm else execution.make(required)
        execution.run(todo, absent)
    finally:
        _write_document(plan)
        if isinstance(sys.exception(), KeyboardInterrupt | SystemExit):  # Ctrl-C, or SIGTERM
            if is_slurm:
                print("submitted jobs stay in the queue of SLURM: scancel removes them", flush=True)
            print(f"to go on, from the checkpoints: python {shlex.join(sys.orig_argv[1:])}", flush=True)
    if execution.failed:
        others = f", and {execution.not_started} were not started, because several settings fail alike"
        others = others if execution.not_started else ""
        sys.exit(
            f"{execution.failed} of {len(todo)} trainings have failed{others}, see above; the same command tries them"
            " again"
        )


def _open(plan: Study, asked: Namespace) -> Results:
    """Check the names of settings, columns and seeds, and open the results."""
    for option, known in (("settings", plan.settings), ("columns", plan.columns), ("seeds", plan.seeds)):
        check_names(asked[option] or [], known, option.removesuffix("s"))
    check_names(asked.again, plan.settings, "setting")
    results = open_results(plan)
    print("".join(f"{note}\n" for note in results.notes), end="")
    if stale := Counter(result.setting for result in results.stale(plan.runs())):
        named = ", ".join(f"{setting} ({number})" for setting, number in stale.items())
        print(f"{results.path}: stale results, which are of no planned test and not shown: {named}", flush=True)
    return results


def _list(todo: Sequence[Run], required: Sequence[Requirement]) -> None:
    """Print the commands, of which none is started."""
    print("".join(f"{job.file}: main.py {job.command}\n" for job in required), end="")
    for run in todo:
        print(f"{run}: main.py {'fit' if run.is_trained else 'test'} {shlex.join(run.words)}")


def _write_scripts(plan: Study, todo: Sequence[Run], asked: Namespace) -> dict[str, Path]:
    """Write a file for sbatch per training, and print their plan."""
    scripts = dict(zip(map(str, todo), write_scripts(plan, todo, asked.slurm, asked.again), strict=True))
    folder = next(iter(scripts.values())).parent
    print((folder / PLAN).read_text(encoding="utf-8"))
    if asked.print_scripts:
        print(f'to start them: for script in {shlex.quote(str(folder))}/*.sbatch; do sbatch "$script"; done')
    return scripts


def _write_document(plan: Study) -> None:
    """Write the document, and print its tables."""
    document = Document(plan, open_results(plan))
    written = document.write()
    for table in (document.score_table(), document.test_table()):
        print(f"\n{table.to_string(index=False)}" if len(table) else "", end="\n")
    print(f"written: {', '.join(map(str, written))}")


class Execution:
    """Makes required files, and trains and tests the runs of a study, some at a time.

    Args:
        plan: The study.
        results: The study's results. Those of the runs are added to them.
        asked: The options of the command.
        scripts: The file for sbatch of each run, if SLURM executes it.
    """

    def __init__(self, plan: Study, results: Results, asked: Namespace, scripts: dict[str, Path]) -> None:
        self.plan, self.results, self.asked, self.scripts = plan, results, asked, scripts
        self.launcher = tuple(shlex.split(asked.launcher))
        self.failed = self.not_started = 0
        self._ended: list[tuple[Run, str | None]] = []  # with the reason of a failure

    def make(self, required: Sequence[Requirement]) -> dict[str, str]:
        """Make required files; return the reason for each that could not be made."""
        absent: dict[str, str] = {}
        for group in in_order(required):
            launch = Launch(min(self.asked.jobs, len(group)), self.launcher)
            for job, failure in at_once(group, partial(Requirement.execute, launch=launch), self.asked.jobs):
                print(f"{job.file}: {failure or 'made'}", flush=True)
                absent |= {job.file: failure} if failure else {}
        return absent

    def run(self, todo: Sequence[Run], absent: dict[str, str]) -> None:
        """Train and test the runs, except those that require an absent file. Print how each ends."""
        ready = []
        for run in todo:
            if lacking := [file for file in run.requires if file in absent]:
                print(f"{run}: failed: it requires {lacking[0]}: {absent[lacking[0]]}", flush=True)
            else:
                ready.append(run)
        self.failed = len(todo) - len(ready)
        for number, (run, failure) in enumerate(at_once(ready, self._train, self.asked.jobs), 1):
            if failure == NOT_STARTED:
                self.not_started += 1
                continue
            self.failed += failure is not None
            text = f"failed: {failure}" if failure else self._score(run)
            print(f"[{number}/{len(ready)}] {run}: {text}", flush=True)

    def _train(self, run: Run) -> str | None:
        if fail_alike(self._ended):
            return NOT_STARTED
        if self.scripts:
            failure = submit(self.scripts[str(run)])
        else:
            is_recorded = self.results.is_recorded if run.setting in self.asked.again else None
            training = Training(self.plan, run, is_recorded)
            failure = training.execute(Launch(self.asked.jobs, self.launcher))
            for result, questions in training.results():  # also of a training of which one test has failed
                self.results.add(result, questions)
        self._ended.append((run, failure))
        return failure

    def _score(self, run: Run) -> str:
        own = self.results.find(run).get(OWN)
        score = own.scores.get(run.score) if own else None
        if own is None or score is None:
            return f"done; its test has no question of the score {run.score}"
        return f"{run.score} {score:.3f}" + ("" if own.fit_s is None else f" ({own.fit_s:.0f} s)")
