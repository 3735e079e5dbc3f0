"""Comparison of a run with published numbers, within their rounding.

The file of published numbers holds groups of rows:

    {"vsibench_16_frames": {"source": "...", "rows": {"Spatial-MLLM-v1.1": {"micro": {"acc": 49.28, "all": 51.13}}}}}

A row has `micro` and `macro` (`macro_new`) means, a number or one per group (acc, mra, all); `macro_old`, the mean over
question types without merging any; `overall`, the mean over questions, as VLMEvalKit prints it; question types; and the
caption metrics. Its numbers are percentages, or fractions if none is above 1.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from decimal import Decimal
from pathlib import Path
from statistics import fmean
from typing import Any

import pandas as pd

from commands.reports.scores import Tested
from zoo.benchmarks import find_benchmark
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


def verify(tested: Tested, rows: Mapping[str, Row], chosen: str | None) -> tuple[str, pd.DataFrame, bool]:
    """Compare a run with one published row.

    Args:
        tested: The test of a run.
        rows: See `read_published`.
        chosen: A row's name, with or without its group; None is the one with the name of the run's weights.

    Returns:
        The title, the table, and whether all numbers were measured and agree.

    Raises:
        InputError: No row or several have this name, or it shares no measure with the test.
    """
    wanted = chosen or str(tested.options.get("model.backbone.path") or "").rpartition("/")[2]
    names = [name for name in rows if wanted in (name, name.partition("/")[2])]
    if len(names) != 1:
        count = "several rows" if names else "no row"
        listed = ", ".join(names or rows)
        raise InputError(f"{tested.label}: {count} of published numbers named {wanted!r}: choose a --row of {listed}")
    published = dict(_flat(rows[names[0]]))
    means = [number for measure, number in published.items() if measure not in TITLES]  # CIDEr may exceed 1
    scale = 1 if max(means or published.values(), default=0) <= 1 else 100
    measured = {measure: _measured(tested, measure) for measure in published}
    if all(score is None for score in measured.values()):
        raise InputError(f"{tested.label}: the row {names[0]!r} shares no measure with {tested.benchmark}")
    compared = {}
    for measure, number in published.items():
        if (score := measured[measure]) is None:
            compared[measure] = {"published": str(number), "measured": "not measured", "within rounding": "NO"}
            continue
        difference = Decimal(score) * scale - number
        agrees = abs(difference) <= Decimal(5).scaleb(int(number.as_tuple().exponent) - 1) + FLOAT_ERROR
        compared[measure] = {
            "published": str(number),
            "measured": f"{score * scale:.6g}",
            "difference": f"{difference:+.2g}",
            "within rounding": "yes" if agrees else "NO",
        }
    columns = ["published", "measured", "difference", "within rounding"]
    table = pd.DataFrame.from_dict(compared, orient="index", columns=columns).fillna("").rename_axis("measure")
    all_agree = bool((table["within rounding"] == "yes").all())
    return f"{tested.label} and {names[0]}", table, all_agree


def _rows(content: Any) -> Mapping[str, Row]:
    return content.get("rows", {}) if isinstance(content, dict) else {}


def _flat(row: Row, prefix: str = "") -> Iterator[tuple[str, Decimal]]:
    for name, value in row.items():
        if isinstance(value, Decimal):
            yield prefix + name, value
        elif isinstance(value, dict):
            yield from _flat(value, f"{name}.")


def _measured(tested: Tested, measure: str) -> float | None:
    """Return the score of a run in 0..1 in a published measure; None if the test lacks it."""
    name, _, group = measure.partition(".")
    group = group or "all"
    if name in (*MICRO, *MACRO):
        mean = "micro" if name in MICRO else "macro"
        return tested.score(mean if group == "all" else f"{group}/{mean}")
    if name == OLD_MACRO:
        kinds = find_benchmark(tested.benchmark).groups.get(group, ())
        scores = [score for kind in kinds if (score := tested.score(kind)) is not None]
        return fmean(scores) if scores else None
    return tested.score(name)
