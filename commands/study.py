"""python main.py study: run the experiments of a YAML file and write their tables.

    python main.py study studies/encodings.yaml
    python main.py study studies/encodings.yaml --settings GTA PRoPE --seeds 0 --dry_run
    python main.py study studies/encodings.yaml --executor slurm --jobs 50 --slurm.partition gpu
    python main.py study studies/seed_question.yaml --executor slurm --print_scripts --slurm.partition gpu

The command trains and tests what has no result yet, in folders of its own in runs/studies/<study>/. It first parses the
options of all trainings and tests. If the first trainings of two settings fail alike, it starts no other. After an
interruption the same command goes on. It writes studies/<study>.md and .png, and appends each result as one line to
studies/results/<study>.jsonl. Commit that file, and a fresh clone goes on from there. --output FOLDER keeps everything
apart, so that the study starts anew.

A result belongs to a setting if the options of training and test are equal, with all configs merged. An edited setting
is trained anew, and its former results are listed as stale. If another study in the same folder has an equal training
with all of its tests, its results are used. --again SETTING trains a setting again; the new results count.

--oracles trains nothing. It adds the scores of oracles to results on panel rooms, whose geometry it draws again
from the seeds.

--executor slurm submits one file for sbatch per training. --print_scripts only writes these files, without a cluster,
and beside them plan.md: GPUs, memory and hours by `main.py plan`. Each job starts main.py by srun, one process per GPU,
and adds its own result. Jobs that require the same file wait for the one that makes it.

A study file has the keys

    title, text   of the document
    settings      the rows of the table: options of `fit` by dotted name for each, and the special keys `configs`
                  (--config files), `tests`, `columns`, `score`, `requires` and `responses`; of two options the later
                  one wins. With trainer.max_steps 0 nothing is trained, and released weights are tested
    columns       the columns of the table: options that each setting is run under; a setting's `columns` chooses some
    configs, options   of all settings
    seeds         values of --seed_everything; a table with all settings is complete before the next seed starts
    added_seeds   those of `seeds` that were added after a look at the results of the others; the document says so
    test          options of every test, such as a subset of the questions
    tests         options of further tests of the trained models, for the settings that name them in `tests`, over the
                  options of `test`; `score` is the measure of a test with other questions
    score         the measure of the tables: a question type, or macro, the mean over question types
    begins        a score above which a training has begun to learn. Where some seeds have and others have not, the
                  tables list every seed instead of a mean, which would be the score of no training
    compare       sections of the document: a title, settings and a baseline, or settings and tests; and a column. With
                  tests a baseline is compared under these, else each setting with its own test. With `interest`, the
                  least effect of interest, the table says what each difference means
    responses     of a setting: interventions of `main.py measure-responses` on the trained model, such as
                  [TurnedCameras, MovedPanel]; the document has a table of the responses
    requires      commands by the file that they make, for the settings that name the file in `requires`. They run side
                  by side before the trainings
    parts         anything, for YAML's anchors: `part: &part {...}`, then `setting: {<<: *part, ...}`
"""

from __future__ import annotations

import shlex
import sys
from collections import Counter
from pathlib import Path
from typing import Any, Literal

from commands.parser import command_parser, parse
from zoo.errors import InputError, add_file_to_errors

Executor = Literal["local", "slurm"]


def study(arguments: list[str]) -> None:
    """Run the command.

    Args:
        arguments: The command line after `study`.

    Raises:
        InputError: The file or an option is wrong.
        SystemExit: Some trainings have failed.
    """
    parser = command_parser("study", __doc__)
    parser.add_argument("study", type=str, help="the study file")
    parser.add_argument("--settings", type=str, nargs="+", help="only these settings")
    parser.add_argument("--columns", type=str, nargs="+", help="only these columns")
    parser.add_argument("--seeds", type=int, nargs="+", help="only these seeds")
    again_help = "settings to train again, whatever has a result"
    parser.add_argument("--again", type=str, nargs="+", default=[], help=again_help)
    parser.add_argument("--jobs", type=int, default=2, help="trainings at a time; on one machine they share the cores")
    parser.add_argument("--dry_run", action="store_true", help="only list what would be run")
    parser.add_argument("--write", action="store_true", help="only write the document")
    oracles_help = "only add the scores of oracles to results on panel rooms, without training, and write the document"
    parser.add_argument("--oracles", action="store_true", help=oracles_help)
    output_help = "a folder for everything that is written; default: runs/studies/<study>/ and the study file's folder"
    parser.add_argument("--output", type=str, help=output_help)
    parser.add_argument("--executor", type=Executor, default="local", help="this machine, or jobs of SLURM")
    slurm_help = "options of sbatch, such as --slurm.partition gpu --slurm.time 600 --slurm.mem 128G"
    parser.add_argument("--slurm", type=dict[str, Any], default={}, help=slurm_help)
    scripts_help = "only write the files for sbatch, for --executor slurm"
    parser.add_argument("--print_scripts", action="store_true", help=scripts_help)
    launcher_help = "command that starts main.py in the processes of a job, such as srun"
    parser.add_argument("--launcher", type=str, default="", help=launcher_help)
    asked = parse(parser, arguments)
    if asked.jobs < 1:
        raise InputError(f"--jobs {asked.jobs}: at least 1")
    if (asked.slurm or asked.print_scripts) and asked.executor != "slurm":
        raise InputError(f"--{'slurm' if asked.slurm else 'print_scripts'}: give --executor slurm as well")

    # these import PyTorch, which --help does without
    from commands.studies.document import Document
    from commands.studies.oracles import add_oracles
    from commands.studies.results import open_results
    from commands.studies.running import (
        NOT_STARTED,
        Launch,
        Requirement,
        Training,
        at_once,
        check_commands,
        fail_alike,
        missing_requirements,
        submit,
    )
    from commands.studies.scripts import PLAN, write_scripts
    from commands.studies.study_file import OWN, Run, check_names, read_study

    plan = read_study(Path(asked.study).expanduser(), Path(asked.output).expanduser() if asked.output else None)
    for option, known in (("settings", plan.settings), ("columns", plan.columns), ("seeds", plan.seeds)):
        check_names(asked[option] or [], known, option.removesuffix("s"))
    check_names(asked.again, plan.settings, "setting")
    results = open_results(plan)
    print("".join(f"{note}\n" for note in results.notes), end="")
    if stale := Counter(result.setting for result in results.stale(plan.runs())):
        named = ", ".join(f"{setting} ({number})" for setting, number in stale.items())
        print(f"{results.path}: stale results, which are of no planned test and not shown: {named}", flush=True)

    if asked.oracles:
        for remark in add_oracles(results):
            print(remark, flush=True)
        asked.write = True

    # 1. What is missing, and whether its options are right.
    chosen = plan.runs(asked.settings, asked.columns, asked.seeds)
    todo = results.missing(chosen, asked.again)
    required = missing_requirements(plan, todo)
    if not asked.write:
        print(f"{len(todo)} of {len(chosen)} trainings to run, {asked.jobs} at a time, in {plan.folder}/", flush=True)
        with add_file_to_errors(plan.path):
            check_commands(todo, required)
    if asked.dry_run:
        print("".join(f"{job.file}: main.py {job.command}\n" for job in required), end="")
        for run in todo:
            print(f"{run}: main.py {'fit' if run.is_trained else 'test'} {shlex.join(run.words)}")
        return
    if asked.executor == "slurm" and todo and not asked.write:
        scripts = dict(zip(map(str, todo), write_scripts(plan, todo, asked.slurm, asked.again), strict=True))
        folder = next(iter(scripts.values())).parent
        print((folder / PLAN).read_text(encoding="utf-8"))
        if asked.print_scripts:
            print(f'to start them: for script in {shlex.quote(str(folder))}/*.sbatch; do sbatch "$script"; done')
            return

    # 2. Train and test it.
    launcher, failed = tuple(shlex.split(asked.launcher)), 0
    not_started = 0
    ended: list[tuple[Run, str | None]] = []  # with the reason of a failure

    def make(job: Requirement) -> str | None:
        return job.execute(Launch(min(asked.jobs, len(required)), launcher))

    def train(run: Run) -> str | None:
        if fail_alike(ended):
            return NOT_STARTED
        if asked.executor == "slurm":
            failure = submit(scripts[str(run)])
        else:
            training = Training(plan, run, results.is_recorded if run.setting in asked.again else None)
            failure = training.execute(Launch(asked.jobs, launcher))
            for result, questions in training.results():  # also of a training of which one test has failed
                results.add(result, questions)
        ended.append((run, failure))
        return failure

    def said(run: Run) -> str:
        own = results.find(run).get(OWN)
        score = own.scores.get(run.score) if own else None
        if own is None or score is None:
            return f"done; its test has no question of the score {run.score}"
        return f"{run.score} {score:.3f}" + ("" if own.fit_s is None else f" ({own.fit_s:.0f} s)")

    try:
        if not asked.write:
            absent: dict[str, str] = {}
            # jobs of SLURM make required files themselves
            for job, failure in at_once([] if asked.executor == "slurm" else required, make, asked.jobs):
                print(f"{job.file}: {failure or 'made'}", flush=True)
                absent |= {job.file: failure} if failure else {}
            ready = []
            for run in todo:
                if lacking := [file for file in run.requires if file in absent]:
                    print(f"{run}: failed: it requires {lacking[0]}: {absent[lacking[0]]}", flush=True)
                else:
                    ready.append(run)
            failed = len(todo) - len(ready)
            for number, (run, failure) in enumerate(at_once(ready, train, asked.jobs), 1):
                if failure == NOT_STARTED:
                    not_started += 1
                    continue
                failed += failure is not None
                print(f"[{number}/{len(ready)}] {run}: {f'failed: {failure}' if failure else said(run)}", flush=True)

    # 3. The document and its tables, also after an interrupt.
    finally:
        document = Document(plan, open_results(plan))
        written = document.write()
        for table in (document.score_table(), document.test_table()):
            print(f"\n{table.to_string(index=False)}" if len(table) else "", end="\n")
        print(f"written: {', '.join(map(str, written))}")
        if isinstance(sys.exception(), KeyboardInterrupt | SystemExit):  # Ctrl-C, or SIGTERM
            if asked.executor == "slurm":
                print("submitted jobs stay in the queue of SLURM: scancel removes them", flush=True)
            print(f"to go on, from the checkpoints: python {shlex.join(sys.orig_argv[1:])}", flush=True)
    if failed:
        others = f", and {not_started} were not started, because several settings fail alike" if not_started else ""
        sys.exit(f"{failed} of {len(todo)} trainings have failed{others}, see above; the same command tries them again")
