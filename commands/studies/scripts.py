"""Files for sbatch, one per training of a study, with what it takes; no cluster is needed to write them."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from commands.plan import GPUS, Training, gigabytes, parsed
from commands.studies.executors import TIMEOUT_MIN
from commands.studies.sections import table
from commands.studies.source_code import SourceCode
from commands.studies.study_file import Run, Study
from zoo.errors import InputError
from zoo.files.atomic_io import write_whole
from zoo.progress import progress

FOLDER, SUFFIX, PLAN, LAUNCHER = "scripts", ".sbatch", "plan.md", "srun"
SIGNAL_S = 300  # seconds between SIGTERM and the time limit, in which a training makes and saves its next step
HEADINGS = ["training", "GPUs", "GB on each", *(f"hours on {gpu.name}" for gpu in GPUS)]
SBATCH = {"timeout_min": "time", "tasks_per_node": "ntasks-per-node", "mem_gb": "mem", "name": "job-name"}
SCRIPT = """#!/bin/bash
# {title}
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


def write_scripts(study: Study, runs: Sequence[Run], parameters: Mapping[str, Any]) -> Path:
    """Write a file for sbatch for each training, and a table of what they take; return their folder.

    Args:
        study: The plan.
        runs: The trainings, at least one.
        parameters: Those of submitit, as `--slurm.*` gives them; they win over what follows from a training.

    Raises:
        InputError: A training can't be planned, or a file can't be written.
    """
    folder, source, rows = study.folder / FOLDER, SourceCode(), list[list[str]]()
    for former in folder.glob(f"*{SUFFIX}"):  # of a training that is done
        former.unlink()
    for run in progress(runs, "plan", "trainings"):
        planned, settings = plan_of(run), source.settings(run)
        rows.append([str(run), str(planned.gpus), *takes(planned, run)])
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
        script = SCRIPT.format(
            title=f"{run}: {study.path}",
            takes=", ".join(f"{name} {value}" for name, value in zip(HEADINGS[1:], rows[-1][1:], strict=True) if value),
            directives="\n".join(_directive(name, value) for name, value in directives.items()),
            command=shlex.join(_command(study, run)),
        )
        write_whole(folder / f"{run.folder_name}{SUFFIX}", script)
    share = f"at {planned.utilization:.0%} of a GPU's peak in bfloat16, without validations and tests"
    note = f"Hours are of {planned.length[1]}, {share}; - does not fit."
    write_whole(folder / PLAN, f"{table(HEADINGS, rows)}\n\n{note}\n")
    return folder


def plan_of(run: Run) -> Training:
    """Return what a training takes; its seed changes nothing.

    Raises:
        InputError: It can't be planned.
    """
    words = [word for word in run.fit if not word.startswith("--seed_everything")]
    try:
        return parsed(tuple(words))
    except InputError as error:
        raise InputError(f"{run}: {error}") from error


def takes(planned: Training, run: Run) -> list[str]:
    """Return the bytes on each GPU and the hours on each kind of GPU; of released weights the bytes of a test."""
    if not run.is_trained:
        return [gigabytes(planned.cost.weights / planned.shards), *("" for _ in GPUS)]
    return planned.on_each_gpu()


def _command(study: Study, run: Run) -> list[str]:
    """Return the command of one training."""
    column = ["--columns", run.column] if run.column else []
    output = ["--output", str(study.output)] if study.output else []
    chosen = ["--settings", run.setting, *column, "--seeds", str(run.seed), *output]
    return ["python", "main.py", "study", str(study.path), *chosen, "--jobs", "1", "--launcher", LAUNCHER]


def _directive(name: str, value: Any) -> str:
    """Return a parameter of submitit as a line of sbatch; true is an option without a value."""
    unit = "G" if name == "mem_gb" else ""
    option = SBATCH.get(name, name.removeprefix("slurm_").replace("_", "-"))
    return f"#SBATCH --{option}" + ("" if value is True else f"={value}{unit}")
