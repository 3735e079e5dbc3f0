"""Questions about panels in rendered rooms, whose answers need both images and cameras."""

from __future__ import annotations

from zoo.benchmarks.scorers import SCORERS
from zoo.benchmarks.spatial import SpatialBenchmark


class PanelBench(SpatialBenchmark):
    """One question type for each task of `PanelRooms`, with the wording and the scorers of VSI-Bench."""

    numeric_types = ("panel_distance",)
    metric_types = ("panel_distance",)
    scorers = tuple(SCORERS)
    columns = {"Distance": ("panel_distance",)}
