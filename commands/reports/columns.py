"""The measures of a report: the columns of a benchmark's results table, and the means of metrics.json."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from zoo.benchmarks import Benchmark

AVERAGE = "Avg."  # of the columns: `all/macro`
MEANS = {
    f"{title} {mean}": (group, mean)
    for group, title in (("acc", "Acc."), ("mra", "MRA"), ("all", "All"))
    for mean in ("micro", "macro")
}


def measures(benchmark: Benchmark) -> tuple[str, ...]:
    """Return the titles of all columns and means."""
    return (*benchmark.columns, *MEANS)


def column_score(benchmark: Benchmark, metrics: Mapping[str, Any], column: str) -> float | None:
    """Return the score of a column in metrics.json, in 0..1; None without questions."""
    if column == AVERAGE:
        return mean_score(metrics, "All macro")
    types = metrics["per_question_type"]
    scores = [types[kind]["score"] for kind in benchmark.columns[column] if kind in types]
    return float(np.mean(scores)) if scores else None


def mean_score(metrics: Mapping[str, Any], measure: str) -> float | None:
    """Return one of MEANS in metrics.json."""
    group, mean = MEANS[measure]
    score: float | None = metrics[group][mean]
    return score
