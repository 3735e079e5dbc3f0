"""Questions about panels in rendered rooms, whose answers need both images and cameras."""

from __future__ import annotations

from zoo.benchmarks.scorers import SCORERS
from zoo.benchmarks.spatial import SpatialBenchmark


class PanelBench(SpatialBenchmark):
    """One question type for each kind of question of `PanelRooms`, with the wording and the scorers of VSI-Bench.

    A task of your own with a new type sets `benchmark` to a subclass with that type.
    """

    numeric_types = ("panel_distance", "panel_width", "panel_turn")
    multiple_choice_types = ("panel_order", "panel_motion", "panel_direction")
    metric_types = numeric_types[:2]
    scorers = tuple(SCORERS)
    columns = {
        "Distance": ("panel_distance",),
        "Width": ("panel_width",),
        "Turn": ("panel_turn",),
        "Order": ("panel_order",),
        "Motion": ("panel_motion",),
        "Direction": ("panel_direction",),
    }
