"""The tables of a report, before they are text, Markdown, LaTeX or HTML."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from commands.reports.bootstrap import RESAMPLES
from commands.reports.columns import (
    AVERAGE,
    COLUMNS,
    MEANS,
    MEASURES,
    MULTIPLE_CHOICE,
    NUMERICAL,
    column_score,
    mean_score,
)
from commands.reports.compare import Comparisons, Difference, Interval
from commands.reports.runs import Run, spell

# a float is a score in 0..1, or a difference of two; None is a number, and "" a text, that is not there
Cell = str | int | float | Interval | None


SETTINGS = (
    *("Run", "Model", "Data", "Frames", "Sampler", "FramePairing"),
    *("Encoding", "Views", "Fusion", "Geometry", "Cameras", "Time"),
    *("Weights", "Checkpoint", "Fingerprint", "Profile"),
)


@dataclass(frozen=True)
class Table:
    """Rows under headings; the first column names the row.

    `groups` stand above the headings: a name and how many columns it spans, empty over those that have none.
    """

    title: str
    headings: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    groups: tuple[tuple[str, int], ...] = ()
    signed: bool = False  # of differences


def show(cell: Cell, signed: bool = False) -> str:
    """A cell's text: scores in per cent with one decimal, as the papers' tables have them."""
    if cell is None or cell == "":
        return "-"
    if isinstance(cell, tuple):
        return f"[{', '.join(show(bound, signed=True) for bound in cell)}]"
    if isinstance(cell, float):
        return f"{round(100 * cell, 1) + 0.0:{'+' if signed else ''}.1f}"  # + 0.0: no -0.0
    return str(cell)


def tables(runs: Sequence[Run], comparisons: Comparisons) -> list[Table]:
    """Scores by question type, means, differences from the first run where there are some, and settings."""
    return [scores(runs), means(runs), *differences(runs, comparisons), settings(runs)]


def scores(runs: Sequence[Run]) -> Table:
    """The published table: the columns of VSI-Bench, and their average."""
    columns = (*COLUMNS, AVERAGE)
    return Table(
        "Scores by question type (%)",
        ("Run", *columns),
        tuple((run.name, *(column_score(run.metrics, c) if run.metrics else None for c in columns)) for run in runs),
        (("", 1), ("Numerical", len(NUMERICAL)), ("Multiple choice", len(MULTIPLE_CHOICE)), ("", 1)),
    )


def means(runs: Sequence[Run]) -> Table:
    """Accuracy of the multiple-choice questions, MRA of the numerical ones, and both."""
    counts = ("questions", "failed", "unparsable")
    return Table(
        "Means over questions (micro) and over question types (macro), %",
        ("Run", *MEANS, *map(str.capitalize, counts)),
        tuple(
            (
                run.name,
                *(mean_score(run.metrics, measure) if run.metrics else None for measure in MEANS),
                *((run.metrics or {}).get("counts", {}).get(count) for count in counts),
            )
            for run in runs
        ),
    )


def differences(runs: Sequence[Run], comparisons: Comparisons) -> list[Table]:
    """Each run against the first that has answers: all measures if it is one pair, the means over all if more."""
    base = first_answered(runs)
    pairs = {pair[1]: found for pair, found in comparisons.pairs.items() if pair[0] == base}
    if base is None or not pairs:
        return []
    measures = MEASURES if len(pairs) == 1 else ("All micro", "All macro")
    rows: list[tuple[Cell, ...]] = []
    for place, found in pairs.items():
        for measure in measures:
            if measure in found:
                each: Difference = found[measure]
                rows.append((runs[place].name, measure, each.value, each.by_question, each.by_scene))
    return [
        Table(
            f"Differences from {runs[base].name} on the same questions, in points; 95 % intervals of a paired "
            f"bootstrap, {RESAMPLES:,} resamples of questions or of scenes",
            ("Run", "Measure", "Difference", "By question", "By scene"),
            tuple(rows),
            signed=True,
        )
    ]


def first_answered(runs: Sequence[Run]) -> int | None:
    """The place of the first run that has answers: the one that the others are compared with."""
    return next((place for place, run in enumerate(runs) if run.answers), None)


def settings(runs: Sequence[Run]) -> Table:
    """What the runs are, and what they were tested on: of the test where there was one, else of the config."""
    return Table(
        "Settings",
        SETTINGS,
        tuple(_settings(run) for run in runs),
    )


def _settings(run: Run) -> tuple[Cell, ...]:
    tested = (run.metrics or {}).get("data") or {}

    def data(name: str) -> str:
        return tested.get(name) or _class(run.setting("data", name))

    return (
        run.name,
        _class(run.setting("model")),
        data("source"),
        tested.get("num_frames") or run.setting("data", "num_frames"),
        data("sampler"),
        data("pairing"),
        *(spell(run.setting("model", part)) for part in ("camera_encoding", "view_mixer", "fusion")),
        _class(run.setting("model", "geometry")),
        str(run.setting("model", "camera_source") or ""),
        spell(run.setting("model", "time_index")),
        str(run.setting("model", "backbone", "path") or _class(run.setting("model", "backbone"))),
        _checkpoint(run),
        run.weights,
        str((run.metrics or {}).get("scorer", "no test yet")),
    )


def _class(part: Any) -> str:
    """The name of the class that a part of a config is; "" where it names none."""
    return str(part.get("class_path") or "").rpartition(".")[2] if isinstance(part, Mapping) else ""


def _checkpoint(run: Run) -> str:
    """The tested checkpoint: as it is called within the run's folder, with its path where it is of elsewhere."""
    path = str((run.metrics or {}).get("checkpoint") or "")
    folder = os.path.abspath(run.setting("trainer", "default_root_dir") or run.folder)
    return os.path.relpath(path, folder) if os.path.abspath(path).startswith(folder + os.sep) and path else path
