"""Folders of runs: which one a command means, whose they are, and their checkpoints."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

from lightning.pytorch.utilities import rank_zero_info

from commands.new_run import RUNS
from zoo.configuration import restrict_imports, unusable_class
from zoo.errors import InputError, add_file_to_errors
from zoo.weights.checkpoint import refuse_damaged
from zoo.weights.saved_models import LAST, LAST_CHECKPOINT, config_of, latest_run, readable_config, trained_at
from zoo.weights.saved_models import RUN_CONFIG as CONFIG


def run_of(checkpoint: Path) -> Path | None:
    """Return the run whose folder contains a checkpoint, or None."""
    run = checkpoint.absolute().parent.parent
    return checkpoint.parent.parent if (run / CONFIG).exists() else None


def refuse_unreadable(checkpoint: Path) -> None:
    """Raise InputError for a checkpoint that is absent, a folder or truncated."""
    if checkpoint.is_dir():
        inside = [path for path in (checkpoint / LAST, checkpoint / LAST_CHECKPOINT) if path.exists()]
        raise InputError(f"{checkpoint} is a folder: give a file, {inside[0] if inside else 'such as ' + LAST}")
    if not checkpoint.exists():
        other = _of_named_run(checkpoint)
        advice = f"did you mean {other}?" if other else "give the path of a .ckpt file"
        raise InputError(f"{checkpoint}: no such checkpoint; {advice}")
    refuse_damaged(checkpoint)


def _of_named_run(checkpoint: Path) -> Path | None:
    """Return the checkpoint of the newest run of a name or model: the folder has the time after it."""
    run = checkpoint.parent.parent
    try:
        found = latest_run(run.name, run.parent) / checkpoint.relative_to(run) if run.name else None
    except InputError:
        return None
    return found if found and found.exists() else None


def with_checkpoint(configs: Iterable[Path]) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Yield the runs that have a checkpoint, with their settings, the newest first; name those that are passed over."""
    for run in sorted((config.parent for config in configs), key=trained_at, reverse=True):
        if (run / LAST_CHECKPOINT).exists():
            if (settings := readable_config(run)) is not None:
                yield run, settings
        elif not any(run.glob("*.jsonl")):  # else it only evaluated other weights
            rank_zero_info(f"{run} is passed over: it has no checkpoint")


def newest_run() -> Path:
    """Return the run under `runs/` with the newest checkpoint of a model that answers questions.

    Newer runs without one are named.

    Raises:
        InputError: There is none.
    """
    for run, settings in with_checkpoint(RUNS.glob(f"*/{CONFIG}")):
        model = settings["model"].get("class_path", "")
        reason = unusable_class(model)
        if model and reason is None and resolve_name(model).answers_questions:
            return run
        name = model.rpartition(".")[2]
        rank_zero_info(f"{run} is passed over: {reason or f'{name} answers no questions'}")
    raise InputError(f"no finished run under {RUNS}/: train one first, python main.py fit --config prope.yaml")


def find_run(folder: str | None) -> Path:
    """Return the run of a folder, or the newest one.

    Raises:
        InputError: It is not the folder of a run, or there is none.
    """
    run = Path(folder).expanduser() if folder else newest_run()
    if not (run / CONFIG).exists():
        raise InputError(f"{run} is no folder of a run: it has no {CONFIG}")
    return run


def is_own(run: Path) -> bool:
    """Whether a run lies in `runs/` of the current folder."""
    folder = Path(os.path.normpath(run.absolute()))
    return RUNS.absolute() in (folder, *folder.parents)


def check_classes(run: Path, trust_modules: Collection[str]) -> None:
    """Check the classes that a run's settings name, see `restrict_imports`; runs in `runs/` are one's own.

    Raises:
        InputError: A class of a module that is not trusted, or one that can't be used.
    """
    if is_own(run):
        return
    with add_file_to_errors(run / CONFIG):
        restrict_imports(config_of(run), trust_modules)
