"""Groups of runs that differ in the seed alone."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from callbacks.settings import CHANGES_NO_ANSWER, CHANGES_NO_RESULT, FILES, flatten, is_one_of
from commands.reports.loaded_runs import Run

TRAINED = ("model", "data", "trainer")  # parts of a config that a run's weights depend on
OF_A_FOLDER = ("trainer.default_root_dir", "trainer.logger", "trainer.callbacks")
OF_WEIGHTS = {"weights", "geometry_weights"}  # fingerprints


def group_by_seed(runs: Sequence[Run]) -> list[list[Run]]:
    """Return the groups of at least two runs with different seeds and otherwise the same settings.

    Of runs with the same seed, the first counts.
    """
    groups: dict[str, dict[str, Run]] = {}
    for run in runs:
        seeds, others = _split({"seed_everything": run.config.get("seed_everything"), **_settings(run)})
        groups.setdefault(others, {}).setdefault(seeds, run)
    return [list(group.values()) for group in groups.values() if len(group) > 1]


def _settings(run: Run) -> dict[str, Any]:
    """Return what the scores of a run depend on: the settings of its training and of its test."""
    config = flatten({part: run.config.get(part) for part in TRAINED})
    trained = {
        name: value
        for name, value in config.items()
        if not name.startswith(OF_A_FOLDER) and not is_one_of(name, CHANGES_NO_RESULT)
    }
    tested = {
        f"test.{name}": value
        for name, value in run.tested.items()
        if name not in OF_WEIGHTS and not name.startswith(FILES) and not is_one_of(name, CHANGES_NO_ANSWER)
    }
    checkpoint = Path(run.metrics.get("checkpoint") or "").name  # the last or the best
    data = run.metrics.get("data")
    return {**trained, **tested, "scorer": run.metrics["scorer"], "checkpoint": checkpoint, "data": data}


def _split(settings: Mapping[str, Any]) -> tuple[str, str]:
    """Return the seeds and the other settings as texts; the seed of a source makes other data."""
    seeds = {
        name: value
        for name, value in settings.items()
        if name.rpartition(".")[2] in ("seed", "seed_everything") and ".source." not in name
    }
    others = {name: value for name, value in settings.items() if name not in seeds}
    return json.dumps(seeds, sort_keys=True, default=str), json.dumps(others, sort_keys=True, default=str)
