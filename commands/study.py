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
                  by side before the trainings; one that reads the file of another, after it
    parts         anything, for YAML's anchors: `part: &part {...}`, then `setting: {<<: *part, ...}`
"""

from __future__ import annotations

from typing import Any, Literal

from commands.parser import command_parser, parse
from zoo.errors import InputError

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

    from commands.studies.execution import run_study  # imports PyTorch, which --help does without

    run_study(asked)
