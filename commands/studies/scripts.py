"""Files for sbatch, one per training of a study, with the GPUs, memory and hours that it takes.

No cluster is needed to write them. `--executor slurm` submits the same files.
"""

from __future__ import annotations

import shlex
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from commands.plan import GPUS, PlannedTraining, gigabytes, in_tenths, parsed
from commands.responses.measuring import NUM_SCENES
from commands.studies.study_file import Run, Study, merged
from run_folder.configs import find_class
from zoo.configuration import flatten
from zoo.errors import InputError
from zoo.files.atomic_io import write_output
from zoo.files.ownership import remove_own
from zoo.progress import progress

FOLDER, SUFFIX, PLAN, LAUNCHER = "scripts", ".sbatch", "plan.md", "srun"
TIMEOUT_MIN = 24 * 60
SIGNAL_S = 300  # seconds between SIGTERM and the time limit, in which a training makes and saves its next step
HEADINGS = ["training", "GPUs", "GB on each", *(f"hours on {gpu.name}" for gpu in GPUS)]
SBATCH = {"timeout_min": "time", "tasks_per_node": "ntasks-per-node", "mem_gb": "mem", "name": "job-name"}
BEGINNING = "#!/bin/bash\n# Written by python main.py study --print_scripts\n"  # the start of each file
SCRIPT = """# {title}
# {takes}
{directives}

# Trains, tests and adds the result to the study, from where an earlier job has left it. Before the time limit SLURM
# sends SIGTERM to the training, not to this script: it saves its next complete step, and the job is queued again.
export SRUN_CPUS_PER_TASK="$SLURM_CPUS_PER_TASK"
[ ! -f .venv/bin/activate ] || source .venv/bin/activate
{command} || status=$?
[ "${{status:=0}}" = 143 ] && scontrol requeue "$SLURM_JOB_ID"
exit "$status"
"""


def write_scripts(
    study: Study, runs: Sequence[Run], parameters: Mapping[str, Any], again: Collection[str]
) -> list[Path]:
    """Write a file for sbatch for each training, and plan.md with what they take; return the files.

    Args:
        study: The plan.
        runs: The trainings, at least one.
        parameters: Options of sbatch, as `--slurm.*` gives them. They win over what follows from a training.
        again: The settings that are trained again, whatever has a result.

    Raises:
        InputError: A training can't be planned, or a file can't be written.
    """
    folder, rows, files = study.folder / FOLDER, list[list[str]](), list[Path]()
    gpu_hours: list[list[float | None]] = []  # of each training
    for former in folder.glob(f"*{SUFFIX}"):  # of a training that is done
        remove_own(former, BEGINNING.encode())
    for run in progress(runs, "plan", "trainings"):
        planned, settings = _plan(run), {**flatten(merged(run.configs)), **run.options}
        asked = _hours_of_responses(planned, run)
        rows.append([str(run), str(planned.gpus), *_takes(planned, run, asked)])
        if run.is_trained:  # one process measures the responses
            training = (hours and hours * planned.gpus for hours in planned.hours)
            gpu_hours.append([own and own + more for own, more in zip(training, asked, strict=True)])
        nodes = int(settings.get("trainer.num_nodes") or 1)
        directives = {
            "name": f"{study.name}-{run.folder_name}",
            "nodes": nodes,
            "tasks_per_node": planned.gpus // nodes,
            "gpus_per_node": planned.gpus // nodes,
            "cpus_per_task": 2 + int(settings.get("data.num_workers") or 0),  # of Python itself, and to save
            "timeout_min": TIMEOUT_MIN,
            "output": str(study.folder / f"{run.folder_name}-%j.txt"),
            "open_mode": "append",
            "requeue": True,
            "signal": f"TERM@{SIGNAL_S}",
            **parameters,
        }
        column = ["--columns", run.column] if run.column else []
        output = ["--output", str(study.output)] if study.output else []
        chosen = ["--settings", run.setting, *column, "--seeds", str(run.seed), *output]
        command = [
            "python",
            "main.py",
            "study",
            str(study.path),
            *chosen,
            *(["--again", run.setting] if run.setting in again else []),
        ]
        script = BEGINNING + SCRIPT.format(
            title=f"{run}: {study.path}",
            takes=", ".join(f"{name} {value}" for name, value in zip(HEADINGS[1:], rows[-1][1:], strict=True) if value),
            directives="\n".join(_directive(name, value) for name, value in directives.items()),
            command=shlex.join([*command, "--jobs", "1", "--launcher", LAUNCHER]),
        )
        files.append(folder / f"{run.folder_name}{SUFFIX}")
        write_output(files[-1], script, BEGINNING)
    totals = [None if None in kind else sum(filter(None, kind)) for kind in zip(*gpu_hours, strict=True)]
    rows += [["all trainings, hours of one GPU", "", "", *map(in_tenths, totals)]] if totals else []
    share = f"at {planned.utilization:.0%} of a GPU's peak in bfloat16, without validations and tests"
    responses = ", and of the responses to interventions" if any(run.responses for run in runs) else ""
    note = f"Hours are of {planned.length[1]}{responses}, {share}; - does not fit."
    table = pd.DataFrame(rows, columns=HEADINGS).to_markdown(index=False, disable_numparse=True)
    write_output(folder / PLAN, f"{table}\n\n{note}\n", f"| {HEADINGS[0]} ")
    return files


def _plan(run: Run) -> PlannedTraining:
    """Return what a training takes."""
    try:
        return parsed(tuple(word for word in run.words if not word.startswith("--seed_everything")))
    except InputError as error:
        raise InputError(f"{run}: {error}") from error


def _hours_of_responses(planned: PlannedTraining, run: Run) -> list[float]:
    """Return the hours of a training's responses on each kind of GPU, or 0: a forward pass for each variant."""
    variants = sum(find_class(name)().num_variants for name in run.responses)
    of_question = planned.cost.steps[False].forward_flops / (planned.batch.scenes * planned.batch.questions)
    return [hours or 0.0 for hours in planned.hours_of(NUM_SCENES * variants * of_question)]


def _takes(planned: PlannedTraining, run: Run, asked: Sequence[float]) -> list[str]:
    """Return the bytes on each GPU and the hours on each kind of GPU; for released weights the bytes of a test."""
    if not run.is_trained:
        return [gigabytes(planned.cost.weights / planned.shards), *("" for _ in GPUS)]
    hours = (in_tenths(own and own + more) for own, more in zip(planned.hours, asked, strict=True))
    return [gigabytes(planned.needed), *hours]


def _directive(name: str, value: Any) -> str:
    """Return an option of sbatch as a line of its file; true is an option without a value."""
    unit = "G" if name == "mem_gb" else ""
    option = SBATCH.get(name, name.removeprefix("slurm_").replace("_", "-"))
    return f"#SBATCH --{option}" + ("" if value is True else f"={value}{unit}")
