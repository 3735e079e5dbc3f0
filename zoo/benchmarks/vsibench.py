"""VSI-Bench ("Thinking in Space", arXiv 2412.14171): spatial questions about indoor videos."""

from __future__ import annotations

from zoo.benchmarks.base import FRAMES_PREFIX, SpatialBenchmark, number_grid
from zoo.benchmarks.scorers import SCORERS, Scorer, float64_mra, read_first_word, to_float

# as the ground truths are written, which lie well within
COUNTS = tuple(str(count) for count in range(1, 51))
METERS, CENTIMETERS = number_grid(0.2, 20, decimals=1), number_grid(4, 900)
SQUARE_METERS = number_grid(1.5, 250, decimals=1)


class VSIBench(SpatialBenchmark):
    """VSI-Bench with Spatial-MLLM's wording and the scorers of `zoo.benchmarks.scorers`."""

    numeric_types = ("object_abs_distance", "object_counting", "object_size_estimation", "room_size_estimation")
    direction_types = ("object_rel_direction_easy", "object_rel_direction_medium", "object_rel_direction_hard")
    multiple_choice_types = (*direction_types, "object_rel_distance", "route_planning", "obj_appearance_order")
    metric_types = ("object_abs_distance", "object_size_estimation", "room_size_estimation")
    exponents = dict(zip(numeric_types, (1.0, 0.0, 1.0, 2.0), strict=True))
    answer_grids = dict(zip(numeric_types, (METERS, COUNTS, CENTIMETERS, SQUARE_METERS), strict=True))
    averaged_types = {"object_rel_direction": direction_types}
    scorers = tuple(SCORERS)
    columns = {  # columns of the paper's and Spatial-MLLM's tables, in their order
        "Obj. Count": ("object_counting",),
        "Abs. Dist.": ("object_abs_distance",),
        "Obj. Size": ("object_size_estimation",),
        "Room Size": ("room_size_estimation",),
        "Rel. Dist.": ("object_rel_distance",),
        "Rel. Dir.": direction_types,
        "Route Plan": ("route_planning",),
        "Appr. Order": ("obj_appearance_order",),
    }


# ---- ReVSI (arXiv 2604.24300): VSI-Bench's tasks with new annotations, and a ground truth per frame budget -----------


def read_answer(text: str) -> str:
    """Return the first word of a stripped answer, as thinking-in-space reads it."""
    return read_first_word(text.strip())


class ReVSI(SpatialBenchmark):
    """ReVSI with the wording and scorer of lmms-eval 0.7.3 (lmms_eval/tasks/revsi), and the scorers of VSI-Bench."""

    numeric_types = (
        *("object_counting_single", "object_counting_multiple", "object_abs_distance", "object_size_estimation"),
        *("room_size_estimation_single", "room_size_estimation_multiple"),
    )
    direction_types = (
        *("object_rel_direction_forward_easy", "object_rel_direction_backward_easy"),
        *("object_rel_direction_forward_hard", "object_rel_direction_backward_hard"),
    )
    distance_types = ("object_rel_distance_closest", "object_rel_distance_farthest")
    multiple_choice_types = (*direction_types, *distance_types, "route_planning")
    metric_types = numeric_types[2:]
    exponents = dict(zip(numeric_types, (0.0, 0.0, 1.0, 1.0, 2.0, 2.0), strict=True))
    answer_grids = dict(zip(numeric_types, (*[COUNTS] * 2, METERS, CENTIMETERS, *[SQUARE_METERS] * 2), strict=True))
    averaged_types = {
        "object_counting": numeric_types[:2],
        "room_size_estimation": numeric_types[4:],
        "object_rel_direction": direction_types,
        "object_rel_distance": distance_types,
    }
    rules = {
        "revsi": Scorer(read_answer, str.lower, lambda text: to_float(read_answer(text)), to_float, float64_mra),
        **SCORERS,
    }
    scorers = tuple(rules)
    columns = {
        "Obj. Count": numeric_types[:2],
        "Abs. Dist.": ("object_abs_distance",),
        "Obj. Size": ("object_size_estimation",),
        "Room Size": numeric_types[4:],
        "Rel. Dist.": distance_types,
        "Rel. Dir.": direction_types,
        "Route Plan": ("route_planning",),
    }
    prefix = FRAMES_PREFIX
    number_instruction = "Answer the question using a single integer or decimal number."


# ---- `PanelRooms`: questions about panels in rendered rooms, whose answers need both images and cameras --------------


class PanelBench(SpatialBenchmark):
    """One question type for each kind of question in `PanelRooms`, with VSI-Bench's wording and scorers.

    For your own task with a new type, set `benchmark` to a subclass with that type.
    """

    numeric_types = ("panel_distance", "panel_width", "panel_turn")
    multiple_choice_types = ("panel_order", "panel_motion", "panel_direction")
    metric_types = numeric_types[:2]
    angle_types = numeric_types[2:]
    exponents = {"panel_distance": 1.0, "panel_turn": 0.0}  # a panel's width follows from the intrinsics
    answer_grids = {
        "panel_distance": number_grid(0.5, 15, decimals=1),
        "panel_width": number_grid(10, 200),
        "panel_turn": tuple(str(degrees) for degrees in range(360)),
    }
    scorers = tuple(SCORERS)
    columns = {
        "Distance": ("panel_distance",),
        "Width": ("panel_width",),
        "Turn": ("panel_turn",),
        "Order": ("panel_order",),
        "Motion": ("panel_motion",),
        "Direction": ("panel_direction",),
    }
