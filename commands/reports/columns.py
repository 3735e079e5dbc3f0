"""What runs are compared in: the columns of the published tables, and the means of metrics.json."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from zoo.metrics import DIRECTION_TYPES, MULTIPLE_CHOICE_TYPES, NUMERIC_TYPES, QUESTION_TYPES

NUMERICAL = {
    "Obj. Count": ("object_counting",),
    "Abs. Dist.": ("object_abs_distance",),
    "Obj. Size": ("object_size_estimation",),
    "Room Size": ("room_size_estimation",),
}
MULTIPLE_CHOICE = {
    "Rel. Dist.": ("object_rel_distance",),
    "Rel. Dir.": DIRECTION_TYPES,  # their mean, as the macro means have it
    "Route Plan": ("route_planning",),
    "Appr. Order": ("obj_appearance_order",),
}
COLUMNS = NUMERICAL | MULTIPLE_CHOICE  # in the order of VSI-Bench's and Spatial-MLLM's tables
AVERAGE = "Avg."  # of the columns, whatever their counts: `all/macro`
GROUPS = {"acc": MULTIPLE_CHOICE_TYPES, "mra": NUMERIC_TYPES, "all": QUESTION_TYPES}  # of metrics.json
MEANS = {
    **{"Acc. micro": ("acc", "micro"), "Acc. macro": ("acc", "macro")},
    **{"MRA micro": ("mra", "micro"), "MRA macro": ("mra", "macro")},
    **{"All micro": ("all", "micro"), "All macro": ("all", "macro")},
}
MEASURES = (*COLUMNS, *MEANS)


def column_score(metrics: Mapping[str, Any], column: str) -> float | None:
    """The score of a column in metrics.json, in 0..1; None where it has no question."""
    if column == AVERAGE:
        return mean_score(metrics, "All macro")
    scores = [metrics["per_question_type"][k]["score"] for k in COLUMNS[column] if k in metrics["per_question_type"]]
    return float(np.mean(scores)) if scores else None


def mean_score(metrics: Mapping[str, Any], measure: str) -> float | None:
    """One of MEANS in metrics.json."""
    group, mean = MEANS[measure]
    score: float | None = metrics[group][mean]
    return score
