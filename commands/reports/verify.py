"""Comparison of a run with published numbers, within their rounding.

The file of published numbers holds groups of rows:

    {"vsibench_16_frames": {"source": "...", "rows": {"Spatial-MLLM-v1.1": {"micro": {"acc": 49.28, "all": 51.13}}}}}

A row has `micro` and `macro` (`macro_new`) means, a number or one per group (acc, mra, all); `macro_old`, the mean over
question types without merging any; `overall`, the mean over questions, as VLMEvalKit prints it; question types; and the
caption metrics. Its numbers are percentages, or fractions if none is above 1.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from decimal import Decimal
from pathlib import Path
from statistics import fmean
from typing import Any

from commands.reports.loaded_runs import Run
from commands.reports.table import Table
from zoo.benchmarks.free_answers import TITLES
from zoo.errors import InputError

MICRO, MACRO, OLD_MACRO = ("micro", "overall"), ("macro", "macro_new"), "macro_old"
FLOAT_ERROR = Decimal("1e-9")
Row = Mapping[str, Any]


def read_published(path: Path) -> dict[str, Row]:
    """Read the rows by `<group>/<row>`; numbers keep their decimals.

    Raises:
        InputError: The file is absent, no JSON, or has no rows.
    """
    try:
        groups = json.loads(path.read_text(encoding="utf-8"), parse_float=Decimal, parse_int=Decimal)
        rows = [(f"{group}/{name}", row) for group, content in groups.items() for name, row in _rows(content).items()]
    except (OSError, ValueError, AttributeError) as error:
        raise InputError(f"{path} holds no published numbers ({error}): see `report --help`") from error
    if not rows:
        raise InputError(f'{path} has no rows of numbers: {{"group": {{"rows": {{"model": {{"micro": 51.13}}}}}}}}')
    return dict(rows)


def verify(run: Run, rows: Mapping[str, Row], chosen: str | None) -> tuple[Table, bool]:
    """Compare a run with one published row.

    Args:
        run: A tested run.
        rows: See `read_published`.
        chosen: A row's name, with or without its group; None is the one with the name of the run's weights.

    Returns:
        The table, and whether all numbers were measured and agree.

    Raises:
        InputError: No row or several have this name, or it shares no measure with the test.
    """
    wanted = chosen or str(run.setting("model", "backbone", "path") or "").rpartition("/")[2]
    names = [name for name in rows if wanted in (name, name.partition("/")[2])]
    if len(names) != 1:
        count = "several rows" if names else "no row"
        listed = ", ".join(names or rows)
        raise InputError(f"{run.name}: {count} of published numbers named {wanted!r}: choose a --row of {listed}")
    published = dict(_flat(rows[names[0]]))
    means = [number for measure, number in published.items() if measure not in TITLES]  # CIDEr may exceed 1
    scale = 1 if max(means or published.values(), default=0) <= 1 else 100
    measured = {measure: _measured(run, measure) for measure in published}
    if all(score is None for score in measured.values()):
        raise InputError(f"{run.name}: the row {names[0]!r} shares no measure with {run.benchmark.name}")
    compared, all_agree = [], None not in measured.values()
    for measure, number in published.items():
        if (score := measured[measure]) is None:
            compared.append((measure, str(number), "not measured", "", "NO"))
            continue
        difference = Decimal(score) * scale - number
        exponent = number.as_tuple().exponent
        agrees = abs(difference) <= Decimal(5).scaleb(int(exponent) - 1) + FLOAT_ERROR
        all_agree &= agrees
        cells = (str(number), f"{score * scale:.6g}", f"{difference:+.2g}", "yes" if agrees else "NO")
        compared.append((measure, *cells))
    headings = ("Measure", "Published", "Measured", "Difference", "Within rounding")
    return Table(f"{run.name} and {names[0]}", headings, tuple(compared)), all_agree


def _rows(content: Any) -> Mapping[str, Row]:
    return content.get("rows", {}) if isinstance(content, dict) else {}


def _flat(row: Row, prefix: str = "") -> Iterator[tuple[str, Decimal]]:
    for name, value in row.items():
        if isinstance(value, Decimal):
            yield prefix + name, value
        elif isinstance(value, dict):
            yield from _flat(value, f"{name}.")


def _measured(run: Run, measure: str) -> float | None:
    """Return the score of a run in 0..1 in a published measure; None if the test lacks it."""
    name, _, group = measure.partition(".")
    types = run.metrics["per_question_type"]
    kinds: Sequence[str] = run.benchmark.groups.get(group or "all", ())
    if name in (*MICRO, *MACRO):
        found: float | None = run.metrics[group or "all"]["micro" if name in MICRO else "macro"] if kinds else None
        return found
    if name == OLD_MACRO:
        scores = [types[kind]["score"] for kind in kinds if kind in types]
        return fmean(scores) if scores else None
    if name in types:
        return float(types[name]["score"])
    caption = run.metrics.get("captions", {}).get(name)
    return caption if isinstance(caption, float) else None
