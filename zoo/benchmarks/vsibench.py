"""VSI-Bench ("Thinking in Space", arXiv 2412.14171): spatial questions about indoor videos."""

from __future__ import annotations

from zoo.benchmarks.scorers import SCORERS
from zoo.benchmarks.spatial import SpatialBenchmark


class VSIBench(SpatialBenchmark):
    """VSI-Bench with Spatial-MLLM's wording and the scorers of `zoo.benchmarks.scorers`."""

    numeric_types = ("object_abs_distance", "object_counting", "object_size_estimation", "room_size_estimation")
    direction_types = ("object_rel_direction_easy", "object_rel_direction_medium", "object_rel_direction_hard")
    multiple_choice_types = (*direction_types, "object_rel_distance", "route_planning", "obj_appearance_order")
    metric_types = ("object_abs_distance", "object_size_estimation", "room_size_estimation")
    averaged_types = {"object_rel_direction": direction_types}
    scorers = tuple(SCORERS)
    columns = {  # of the paper's and Spatial-MLLM's tables, in their order
        "Obj. Count": ("object_counting",),
        "Abs. Dist.": ("object_abs_distance",),
        "Obj. Size": ("object_size_estimation",),
        "Room Size": ("room_size_estimation",),
        "Rel. Dist.": ("object_rel_distance",),
        "Rel. Dir.": direction_types,
        "Route Plan": ("route_planning",),
        "Appr. Order": ("obj_appearance_order",),
    }
