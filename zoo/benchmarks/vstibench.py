"""VSTI-Bench (VLM-3R, arXiv 2505.20279): questions about the motion of the camera through a scan of ScanNet.

The official scorers are two copies of one lmms-eval task:

`vlm_3r` (VITA-Group/VLM-3R) reads and compares answers as `thinking_in_space`. Its overall score is the mean over
    question types, each counted once.

`geothinker` (Li-Hao-yuan/GeoThinker) first takes the content of the last `<answer>...</answer>`. A number may be the
    letter of an option if the ground truth is one. Its overall score is the mean over five groups: the three relative
    distances count as one, and so do the three relative positions. It does not know `camera_obj_dist_change`.

With both, every number is right if the ground truth is negative, because the error is divided by it.

Labels: the first release (`test.json` with 6,042 questions) takes -Rᵀt of a camera-to-world pose for the position of
the camera, which is the world's origin seen by the camera. Displacements and camera-object distances of that release
are therefore not those of the scene. VLM-3R's code has been corrected since (2ad44e6), and scores on corrected labels
do not compare with earlier ones.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import ClassVar

import numpy as np
from jaxtyping import Float, Float64

from zoo.benchmarks.base import FRAMES_PREFIX, SpatialBenchmark, number_grid
from zoo.benchmarks.scorers import SCORERS, Scorer, float64_mra, last_tagged, read_first_word, to_float

FRAMES = re.compile(r"frame (\d+) and frame (\d+) of (\d+)")


def read_tagged_word(text: str) -> str:
    """Return the first word of the last answer tag, or of the text, as GeoThinker reads it."""
    return read_first_word(last_tagged(text))


class VSTIBench(SpatialBenchmark):
    """VSTI-Bench with thinking-in-space's wording, its two official scorers, and the scorers of VSI-Bench.

    Two answers need cameras alone: the distance between two frames' cameras, and the direction of the motion.
    """

    numeric_types = ("camera_obj_abs_dist", "camera_displacement", "camera_obj_dist_change")
    distance_types = ("camera_obj_rel_dist_v1", "camera_obj_rel_dist_v2", "camera_obj_rel_dist_v3")
    position_types = ("obj_obj_relative_pos_nf", "obj_obj_relative_pos_lr", "obj_obj_relative_pos_ud")
    multiple_choice_types = ("camera_movement_direction", *distance_types, *position_types)
    metric_types = numeric_types
    exponents = {"camera_obj_abs_dist": 1.0, "camera_displacement": 1.0}
    answer_grids = dict.fromkeys(exponents, number_grid(0.1, 20, decimals=1))
    averaged_types = {"camera_obj_rel_dist": distance_types, "obj_obj_relative_pos": position_types}
    camera_types = ("camera_displacement", "camera_movement_direction")
    rules = {
        "vlm_3r": SCORERS["thinking_in_space"],
        "geothinker": Scorer(
            read_tagged_word, str.lower, lambda text: to_float(read_tagged_word(text)), to_float, float64_mra
        ),
        **SCORERS,
    }
    scorers = tuple(rules)
    ungrouped_scorers = ("vlm_3r",)
    columns = {
        "Abs. Dist.": ("camera_obj_abs_dist",),
        "Displacement": ("camera_displacement",),
        "Dist. Change": ("camera_obj_dist_change",),
        "Direction": ("camera_movement_direction",),
        "Rel. Dist.": distance_types,
        "Rel. Pos.": position_types,
    }
    prefix = FRAMES_PREFIX
    axes: ClassVar[Mapping[str, tuple[int, int]]] = {  # axis of the first camera, and its sign
        "right": (0, 1),
        "left": (0, -1),
        "forward": (2, 1),
        "backward": (2, -1),
    }

    def score(self, prediction: str, ground_truth: str, question_type: str, scorer: str) -> float:
        """Score one answer by the rules of an official scorer."""
        if scorer == "geothinker" and question_type in self.numeric_types:
            if question_type == "camera_obj_dist_change":
                return 0.0  # the official scorer raises
            if re.fullmatch("[A-Z]", ground_truth):
                return float(last_tagged(prediction).split(" ")[0].rstrip(".").strip() == ground_truth)
        return super().score(prediction, ground_truth, question_type, scorer)

    def answers_from_cameras(
        self, question_type: str, question: str, options: Sequence[str], world_to_camera: Float64[np.ndarray, "T 4 4"]
    ) -> Mapping[str, str]:
        """Return the answers that need cameras alone.

        The displacement has two methods: by the cameras' positions, and by the translations of their world-to-camera
        poses, which the first release of the labels takes for positions.
        """
        asked = FRAMES.search(question)
        known = np.isfinite(world_to_camera).all((1, 2)).nonzero()[0]
        if asked is None or not len(known):
            return {}
        first, last, total = map(int, asked.groups())
        raw = (np.array([first, last]) - 1) * (len(world_to_camera) - 1) / max(1, total - 1)  # evenly spaced frames
        start, end = world_to_camera[known[abs(known[:, None] - raw).argmin(0)]]
        if question_type == "camera_displacement":
            lengths = {
                "camera positions": np.linalg.norm(_center(start) - _center(end)),
                "world-to-camera translations": np.linalg.norm(start[:3, 3] - end[:3, 3]),
            }
            return {method: f"{length:.1f}" for method, length in lengths.items()}
        motion = start[:3, :3] @ _center(end) + start[:3, 3]
        steps: dict[str, float] = {}
        for letter, _, text in (option.partition(".") for option in options):
            if text.strip().lower() in self.axes:
                axis, sign = self.axes[text.strip().lower()]
                steps[letter] = sign * motion[axis]
        return {"camera positions": max(steps, key=lambda letter: steps[letter])} if steps else {}


def _center(world_to_camera: Float[np.ndarray, "4 4"]) -> Float[np.ndarray, " 3"]:
    return -world_to_camera[:3, :3].T @ world_to_camera[:3, 3]
