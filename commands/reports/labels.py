"""Labels of runs in a report: their names, and what differs among runs of one name."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace

from callbacks.results_folder import TESTS
from callbacks.run_config import is_covered
from commands.reports.loaded_runs import CHANGES_NO_RESULT, Run
from zoo.configuration import flatten

STAMP = re.compile(r"-\d{8}-\d{6}(-\d+)?(?=/|$)")  # of a folder that `fit` named
MOST = 3  # settings in a label


def with_labels(runs: Sequence[Run]) -> list[Run]:
    """Return the runs named without the time of their folders, and by what differs where that is not unique.

    Where the settings of such runs are equal, or too many differ, the folders' names stay.
    """
    labels = [_label(run) for run in runs]
    for label in {label for label in labels if labels.count(label) > 1}:
        places = [place for place, each in enumerate(labels) if each == label]
        told = _differences([runs[place] for place in places])
        is_told = len(set(told)) == len(told)
        for place, difference in zip(places, told, strict=True):
            labels[place] = f"{label}, {difference}" if is_told and difference else runs[place].name
    return [replace(run, name=label) for run, label in zip(runs, labels, strict=True)]


def _label(run: Run) -> str:
    """Return the name of a run, with the folder of a further test."""
    if (given := run.config.get("name")) is None:
        return STAMP.sub("", run.name)
    return f"{given}/{run.folder.name}" if run.folder.parent.name == TESTS else str(given)


def _differences(runs: Sequence[Run]) -> list[str]:
    """Return for each run the settings in which the runs differ, as short text; empty texts if they are too many."""
    parts = ("model", "data", "trainer", "seed_everything")
    settings = [flatten({part: run.tested_config.get(part) for part in parts}) for run in runs]
    names = [name for name in dict.fromkeys(key for each in settings for key in each)]
    differing = [
        name
        for name in names
        if not is_covered(name, CHANGES_NO_RESULT) and len({str(each.get(name)) for each in settings}) > 1
    ]
    kept = [
        name
        for name in differing
        if not any(name.startswith(f"{_part(other)}.") for other in differing if other != name)
    ]
    if not 0 < len(kept) <= MOST:
        return [""] * len(runs)
    return [", ".join(f"{_short(name)} {_value(each.get(name))}" for name in kept) for each in settings]


def _part(name: str) -> str:
    """Return the part whose class an option names."""
    return name.removesuffix(".class_path")


def _short(name: str) -> str:
    """Return the last key of an option's name."""
    return _part(name).rpartition(".")[2]


def _value(value: object) -> str:
    """Return a value as short text: of a class its name."""
    return re.sub(r"^[a-z_.]+\.(?=[A-Z]\w*$)", "", str(value)) if value is not None else "null"
