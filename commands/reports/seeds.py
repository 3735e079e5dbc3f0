"""Groups of runs that differ in the seed alone."""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from callbacks.checkpoint import BEST
from callbacks.run_config import declared_options, is_covered
from commands.reports.loaded_runs import CHANGES_NO_RESULT, Run
from datamodules import VideoQADataModule
from zoo.configuration import flatten
from zoo.tasks import VideoQATask

TRAINED = ("model", "data", "trainer")  # parts of a config that a run's weights depend on
Settings = dict[str, Any]  # by dotted name


def group_by_seed(runs: Sequence[Run]) -> list[list[Run]]:
    """Return the groups of at least two runs with different seeds and otherwise the same settings and code.

    Of runs with the same seed, the first counts.
    """
    groups: dict[str, dict[str, Run]] = {}
    for run in runs:
        seeds, others = _split(run)
        groups.setdefault(_text({**others, **_made_by(run)}), {}).setdefault(_text(seeds), run)
    return [list(group.values()) for group in groups.values() if len(group) > 1]


def name_ungrouped(runs: Sequence[Run]) -> list[str]:
    """Return remarks about runs of other seeds that are not averaged, since other code made them or some go further."""
    similar: dict[str, list[tuple[str, Run]]] = {}
    for run in runs:
        seeds, others = _split(run)
        similar.setdefault(_text(others), []).append((_text(seeds), run))
    remarks = []
    for each in similar.values():
        made = [_made_by(run) for _, run in each]
        values = {name: [str(own.get(name)) for own in made] for name in dict.fromkeys(chain(*made))}
        differing = [f"{name} ({', '.join(own)})" for name, own in values.items() if len(set(own)) > 1]
        if differing and len({seeds for seeds, _ in each}) > 1:
            names = ", ".join(run.name for _, run in each)
            remarks.append(f"not averaged together: {names} differ in the seed and in {'; '.join(differing)}")
    return remarks


def _made_by(run: Run) -> Settings:
    """Return how far the run is trained, and the versions of the code that trained and tested it."""
    # the step of the best checkpoint differs between seeds
    return flatten({name: run.metrics.get(name) for name in ("run_step", "max_steps", "training_versions", "versions")})


def _split(run: Run) -> tuple[Settings, Settings]:
    """Return the seeds, and the other settings that the scores of a run depend on; the seed of a source is no seed."""
    parts = (*TRAINED, "checkpoint") if _checkpoint(run) == BEST else TRAINED  # which names what is best
    trained = flatten({part: run.config.get(part) for part in parts})
    tested = flatten(run.metrics.get("config") or {})
    no_answer = declared_options("changes_no_answer", VideoQATask, VideoQADataModule)
    settings = {
        "seed_everything": run.config.get("seed_everything"),
        **{name: value for name, value in trained.items() if not is_covered(name, CHANGES_NO_RESULT)},
        **{f"test.{name}": value for name, value in tested.items() if not is_covered(name, no_answer)},
        "scorer": run.metrics["scorer"],
        "tested checkpoint": _checkpoint(run),
    }
    seeds = {
        name: value
        for name, value in settings.items()
        if name.rpartition(".")[2] in ("seed", "seed_everything") and ".source." not in name
    }
    return seeds, {name: value for name, value in settings.items() if name not in seeds}


def _checkpoint(run: Run) -> str:
    """Return the name of the tested checkpoint: the last or the best."""
    return Path(run.metrics.get("checkpoint") or "").name


def _text(settings: Any) -> str:
    return json.dumps(settings, sort_keys=True, default=str)
