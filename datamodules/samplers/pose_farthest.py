"""Frames with distant camera poses: different places, different directions."""

from __future__ import annotations

import random
from typing import Literal

import numpy as np
from jaxtyping import Float

from datamodules.samplers.base import FrameSampler, SceneView
from datamodules.samplers.pose_distances import (
    Normalize,
    farthest,
    medoid,
    one_per_cell,
    pairwise_distances,
    pose_matrix,
    pose_plane,
)
from zoo.cameras.poses import invert_se3
from zoo.seed import resolve_seed

Translation = Literal["center", "world_to_camera"]
PREFILTER = 3  # points that the grid keeps per chosen point


class PoseFarthestSampler(FrameSampler):
    """Farthest-point sampling of camera poses.

    The distance of two poses is the distance of their camera centers plus the angle between their rotations. Frames
    without a pose are never chosen. Source: `fps` sampling of the Spatial-MLLM fork, with identical choices.

    Args:
        normalize: Divisor of distances and angles: their largest value ("max") or their standard deviation ("std").
        start: First view: the "first" frame, the "medoid" (least sum of distances), or a "random" one.
        translation: "center" compares camera centers; "world_to_camera" compares the translations of world-to-camera
            poses, which mix position and direction, and reproduces the fork's results with VGGT's poses.
        seed: Seed of a random start, together with the epoch and the video's name; null is the run's.
        candidates: Number of candidates at even steps; null is all frames.
    """

    def __init__(
        self,
        normalize: Normalize = "max",
        start: Literal["first", "medoid", "random"] = "first",
        translation: Translation = "center",
        seed: int | None = None,
        candidates: int | None = None,
    ) -> None:
        self.normalize, self.start, self.translation = normalize, start, translation
        # cached selections depend on the run's seed only if they are drawn
        self.seed = resolve_seed(seed) if start == "random" else seed
        self.candidates = candidates

    @property
    def varies_by_epoch(self) -> bool:
        """See `FrameSampler`."""
        return self.start == "random"

    def choose(self, scene: SceneView, n: int) -> list[int]:
        """Places of n distant poses."""
        places, poses = valid_poses(scene, self.translation)
        distances = pose_matrix(poses, self.normalize)
        if self.start == "random":
            start = random.Random(f"{self.seed}/{scene.epoch}/{scene.video.path.name}").randrange(len(places))
        else:
            start = 0 if self.start == "first" else int(distances.sum(1).argmin())
        return [places[i] for i in farthest(distances, n, start)]


class PosePlaneSampler(FrameSampler):
    """Views spread over a plane: distance of a camera from the first one, and its rotation relative to it.

    Cheaper than all pairs of poses, but it ignores the direction of motion. Frames without a pose are never chosen.
    Source: `efficient` sampling of the Spatial-MLLM fork, with identical choices.

    Args:
        mode: "grid" takes one point per cell, distant cells first; "farthest" is farthest-point sampling in the plane;
            "hybrid" is farthest-point sampling of three times as many points, one per cell.
        normalize: Divisor of both axes: their largest value ("max") or their standard deviation ("std").
        start: Start of farthest-point sampling: the point "farthest" from the origin, the "medoid", or the "first".
        skip_first: Never choose the first frame, which is the origin.
        density: Cells per point.
        translation: See `PoseFarthestSampler`.
        candidates: Number of candidates at even steps; null is all frames.
    """

    def __init__(
        self,
        mode: Literal["grid", "hybrid", "farthest"] = "hybrid",
        normalize: Normalize = "std",
        start: Literal["farthest", "medoid", "first"] = "farthest",
        skip_first: bool = False,
        density: float = 1.5,
        translation: Translation = "center",
        candidates: int | None = None,
    ) -> None:
        self.mode, self.normalize, self.start = mode, normalize, start
        self.skip_first, self.density, self.translation = skip_first, density, translation
        self.candidates = candidates

    def choose(self, scene: SceneView, n: int) -> list[int]:
        """Places of n poses spread over the plane."""
        places, poses = valid_poses(scene, self.translation)
        return [places[i] for i in self._spread(pose_plane(poses, self.normalize), n)]

    def _spread(self, plane: Float[np.ndarray, "N 2"], n: int) -> list[int]:
        points = list(range(len(plane)))
        if n >= len(points):
            return points
        if self.skip_first:
            points = points[1:]
        if self.mode == "grid":
            return one_per_cell(plane, points, n, self.density)
        if self.mode == "hybrid":
            points = one_per_cell(plane, points, min(PREFILTER * n, len(points)), self.density)
        if n >= len(points):
            return points
        if self.start == "first":
            start = points[0]
        elif self.start == "medoid":
            start = points[medoid(pairwise_distances(plane[points]))]
        else:
            start = points[int(np.linalg.norm(plane[points], axis=1).argmax())]
        points = sorted(points)  # ties go to the lower frame, whatever its cell
        return [points[i] for i in farthest(pairwise_distances(plane[points]), n, points.index(start))]


def valid_poses(scene: SceneView, translation: Translation) -> tuple[list[int], Float[np.ndarray, "N 4 4"]]:
    """Places in the pool with a pose, and matrices whose rotations and translations are compared.

    Raises:
        ValueError: No frame has a pose.
    """
    poses = scene.poses
    places = (~poses.isnan().flatten(1).any(1)).nonzero().flatten().tolist()
    poses = poses[places]
    return places, (poses if translation == "world_to_camera" else invert_se3(poses)).numpy()
