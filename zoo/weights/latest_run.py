"""The newest trained run in a folder of runs."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

from zoo.errors import InputError
from zoo.weights.saved_models import LAST_CHECKPOINT, RUN_CONFIG, config_of


def latest_run(name: str | None = None, runs: str | Path = "runs") -> Path:
    """Return the folder of the newest run that has a checkpoint, for `SpatialVLM.from_pretrained(latest_run())`.

    Runs whose config can't be read are named.

    Args:
        name: The class of its model, such as "PRoPEMLLM", or the name that `fit --name` gave it; None is any.
        runs: The folder of runs.

    Raises:
        InputError: There is none.
    """
    found = {config.parent for config in Path(runs).glob(f"*/{RUN_CONFIG}")}
    for run in sorted((run for run in found if (run / LAST_CHECKPOINT).exists()), key=trained_at, reverse=True):
        if (config := readable_config(run)) is None:
            continue
        model = str(config["model"].get("class_path", "")).rpartition(".")[2]
        if name in (None, model, config.get("name")):
            return run
    which = "run" if name is None else f"run of {name}"
    raise InputError(f"no trained {which} in {runs}/: train one first, python main.py fit --config prope.yaml")


def readable_config(run: Path) -> dict[str, Any] | None:
    """Return the settings of a run; None, and a warning that says so, if they can't be read."""
    try:
        return config_of(run)
    except InputError:
        warnings.warn(f"{run} is passed over: its {RUN_CONFIG} can't be read", stacklevel=2)
        return None


def trained_at(run: Path) -> float:
    """Return the time of a run's checkpoint, or of its config where it has none."""
    checkpoint = run / LAST_CHECKPOINT
    return (checkpoint if checkpoint.exists() else run / RUN_CONFIG).stat().st_mtime
