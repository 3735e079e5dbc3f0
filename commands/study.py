"""python main.py study: run the experiments of a YAML file and write their document.

    python main.py study studies/encodings.yaml
    python main.py study studies/encodings.yaml --settings GTA PRoPE --seeds 0 --dry_run
    python main.py study studies/encodings.yaml --jobs 50 --executor slurm --slurm.partition gpu --slurm.gpus_per_node 1
    python main.py study studies/seed_question.yaml --executor slurm --print_scripts --slurm.partition gpu

trains and tests what has no result yet, each with `main.py fit` and `main.py test` in a folder of its own in
runs/studies/<study>/, and writes studies/<study>.md and .png. An interrupted training goes on. The results are in
studies/results/<study>.jsonl: commit it, and a fresh clone goes on from there. A training is not repeated if another
file in that folder has it with all of the tests. --output FOLDER keeps everything apart, so that the study starts anew.

--print_scripts writes one file for sbatch per training, without a cluster, and beside them plan.md: GPUs, memory and
hours by `main.py plan`. Each job starts main.py by --launcher srun, one process per GPU, and adds its own results.

A result has a digest of the code that trained: the configs and the modules that the classes of its settings import, the
project's and your own, without comments and docstrings. Results of other code than the present are marked, and
--redo_outdated makes them again.

A study file has the keys

    title, text   of the document
    settings      the rows of the table: options of `fit` by dotted name for each, and the special keys `configs`
                  (--config files), `tests`, `columns`, `score` and `requires`; of two options the later one wins.
                  With trainer.max_steps 0 nothing is trained: released weights are tested
    columns       the columns of the table: options that each setting is run under; a setting's `columns` chooses some
    configs, options   those that all settings have
    seeds         values of --seed_everything; a table with all settings is complete before the next seed starts
    test          options of every test, such as a subset of the questions
    tests         options of further tests of the trained models, for the settings that name them in `tests`, over those
                  of `test`; `score` is the measure of one with other questions
    score         the measure of the tables: a question type, or macro, the mean over question types
    compare       sections of the document: a title, settings and a baseline, or settings and tests; and a column. With
                  tests a baseline is compared under these, else each setting with its own test
    documents     files in which sections are embedded between <!-- study: <study> / <title> --> and <!-- end -->, and
                  scores between <!-- score: <study> / <setting> / <column> --> and <!-- end -->
    requires      commands by the file that they make, for the settings that name the file in `requires`; they run side
                  by side, before the trainings; a file is made anew if its command was interrupted or has failed
    parts         anything, for YAML's anchors: `part: &part {...}`, then `setting: {<<: *part, ...}`
"""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from commands.parser import command_parser, parse
from zoo.errors import InputError

if TYPE_CHECKING:
    from commands.studies.executors import Executor

ExecutorName = Literal["local", "slurm", "submitit_local"]


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
    parser.add_argument("--jobs", type=int, default=2, help="trainings at a time; on one machine they share the cores")
    parser.add_argument("--redo_outdated", action="store_true", help="retrain what other code has trained")
    parser.add_argument("--dry_run", action="store_true", help="only list what would be run")
    parser.add_argument("--write", action="store_true", help="only write the document")
    output_help = "a folder for all that is written; default: runs/studies/<study>/ and the study file's own folder"
    parser.add_argument("--output", type=str, help=output_help)
    executor_help = "this machine, an array of SLURM jobs, or submitit's jobs on this machine"
    parser.add_argument("--executor", type=ExecutorName, default="local", help=executor_help)
    slurm_help = "parameters of submitit's AutoExecutor, such as --slurm.partition gpu --slurm.timeout_min 600"
    parser.add_argument("--slurm", type=dict[str, Any], default={}, help=slurm_help)
    scripts_help = "only write the files for sbatch, for --executor slurm"
    parser.add_argument("--print_scripts", action="store_true", help=scripts_help)
    launcher_help = "what starts main.py in the processes of a job, such as srun"
    parser.add_argument("--launcher", type=str, default="", help=launcher_help)
    asked = parse(parser, arguments)
    if asked.jobs < 1:
        raise InputError(f"--jobs {asked.jobs}: at least 1")
    if asked.slurm and asked.executor == "local":
        raise InputError("--slurm: for --executor slurm")
    if asked.print_scripts and asked.executor != "slurm":
        raise InputError("--print_scripts: with --executor slurm")

    # after the options are read: these import PyTorch, which the help does without
    from commands.studies.document import score_table, test_table, write_documents
    from commands.studies.execution import execute, required
    from commands.studies.executors import LocalExecutor, SubmititExecutor
    from commands.studies.names import check_names
    from commands.studies.processes import Launch
    from commands.studies.reading import read_study
    from commands.studies.results import Results
    from commands.studies.scores import Scores
    from commands.studies.scripts import PLAN, write_scripts
    from commands.studies.source_code import SourceCode

    plan = read_study(Path(asked.study).expanduser(), Path(asked.output).expanduser() if asked.output else None)
    everything = plan.runs(plan.settings, plan.columns, plan.seeds)
    for option, known in (("settings", plan.settings), ("columns", plan.columns), ("seeds", plan.seeds)):
        check_names(asked[option] or [], known, option.removesuffix("s"))
    others = [] if plan.output else sorted({*plan.results.parent.glob("*.jsonl")} - {plan.results})
    results, source = Results(plan.results, others), SourceCode()
    print("".join(f"{note}\n" for note in results.notes), end="")
    codes = {run.command: source.digest(run) for run in everything}

    chosen = plan.runs(*(asked[key] or getattr(plan, key) for key in ("settings", "columns", "seeds")))
    launch = Launch(1 if asked.executor == "slurm" else asked.jobs, tuple(shlex.split(asked.launcher)))

    def executor() -> Executor:
        if asked.executor == "local":
            return LocalExecutor(asked.jobs)
        cluster = asked.executor.removeprefix("submitit_")
        return SubmititExecutor(asked.jobs, cluster, plan.folder / "submitit", asked.slurm)

    # 1. What is missing.
    todo = []
    for run in chosen:
        found = [results.find(run, test) for test in run.tests]
        is_outdated = any(result is not None and results.is_outdated(result, codes[run.command]) for result in found)
        if None in found or (asked.redo_outdated and is_outdated):
            todo.append(run)
    if asked.print_scripts:
        print(f"{len(todo)} of {len(chosen)} trainings to run", flush=True)
        if todo:
            folder = write_scripts(plan, todo, asked.slurm)
            print((folder / PLAN).read_text(encoding="utf-8"))
            print(f"to start them: for script in {folder}/*.sbatch; do sbatch $script; done")
        return
    if asked.dry_run:
        print("".join(f"{job.file}: main.py {job.command}\n" for job in required(plan, todo, launch)), end="")
        print("".join(f"{run}: main.py {'fit' if run.is_trained else 'test'} {run.command}\n" for run in todo), end="")
    if not asked.write:
        print(f"{len(todo)} of {len(chosen)} trainings to run, {asked.jobs} at a time, in {plan.folder}/", flush=True)

    # 2. Train and test it.
    failed = 0
    try:
        if todo and not asked.write and not asked.dry_run:
            failed = execute(plan, todo, codes, results, executor(), launch, asked.redo_outdated)

    # 3. The document and its tables, also after an interrupt.
    finally:
        if not asked.dry_run:
            scores = Scores(plan, Results(plan.results, others), codes)
            written = write_documents(scores)
            print("\n\n".join(filter(None, [score_table(scores), test_table(scores)])))
            print(f"written: {', '.join(map(str, written))}")
        if isinstance(sys.exception(), KeyboardInterrupt | SystemExit):  # Ctrl-C, or SIGTERM
            print(f"to go on, from the checkpoints: python {shlex.join(sys.orig_argv[1:])}", flush=True)
    if failed:
        sys.exit(f"{failed} of {len(todo)} trainings have failed, see above; the same command tries them again")
