"""Frames whose cameras are far apart: other places, other directions."""

from __future__ import annotations

import random
from typing import Literal

import numpy as np
from jaxtyping import Float

from datamodules.samplers.base import FrameSampler, SceneView
from datamodules.samplers.poses import (
    Normalize,
    farthest,
    medoid,
    one_a_cell,
    plane_matrix,
    pose_matrix,
    pose_plane,
)
from zoo.poses import invert_se3

Translation = Literal["center", "world_to_camera"]
PREFILTER = 3  # points that the grid leaves for each that is chosen


class PoseFarthestSampler(FrameSampler):
    """Farthest-point sampling of camera poses: always the frame whose pose is farthest from those chosen.

    The distance is that of the camera centers plus the angle between the views. Frames without a pose are never
    chosen. Source: the Spatial-MLLM fork's `fps` sampling, pick for pick.

    Args:
        normalize: centers and angles are divided by their largest value ("max") or their standard deviation ("std").
        start: the first view is the "first" frame, the "medoid" (least distance from all), or one at "random".
        translation: "center" compares where the cameras are. "world_to_camera" compares the translation of
            world-to-camera poses, which mixes place and direction; the fork did so with VGGT's poses, and it is here to
            repeat its results.
        seed: of a random start, which also depends on the epoch and the video's name.
        candidates: choose among so many frames at even steps; null is all.
    """

    def __init__(
        self,
        normalize: Normalize = "max",
        start: Literal["first", "medoid", "random"] = "first",
        translation: Translation = "center",
        seed: int = 0,
        candidates: int | None = None,
    ) -> None:
        self.normalize, self.start, self.translation = normalize, start, translation
        self.seed, self.candidates = seed, candidates

    def choose(self, scene: SceneView, n: int) -> list[int]:
        places, poses = valid_poses(scene, self.translation)
        distances = pose_matrix(poses, self.normalize)
        if self.start == "random":
            start = random.Random(f"{self.seed}/{scene.epoch}/{scene.video.path.name}").randrange(len(places))
        else:
            start = 0 if self.start == "first" else int(distances.sum(1).argmin())
        return [places[i] for i in farthest(distances, n, start)]


class PosePlaneSampler(FrameSampler):
    """Views spread over a plane: how far a camera is from the first one, and how far it has turned from it.

    Cheaper than all pairs of poses, and blind to the direction in which a camera went. Frames without a pose are never
    chosen. Source: the Spatial-MLLM fork's `efficient` sampling, pick for pick.

    Args:
        mode: "grid" takes a point a cell, far cells first; "farthest" is farthest-point sampling in the plane; "hybrid"
            is that among three times as many points, a cell each.
        normalize: both axes are divided by their largest value ("max") or their standard deviation ("std").
        start: of farthest-point sampling: the point "farthest" from the origin, the "medoid", or the "first" one.
        skip_first: never choose the first frame, which is the origin.
        density: cells a point.
        translation: see `PoseFarthestSampler`.
        candidates: choose among so many frames at even steps; null is all.
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
        places, poses = valid_poses(scene, self.translation)
        return [places[i] for i in self._spread(pose_plane(poses, self.normalize), n)]

    def _spread(self, plane: Float[np.ndarray, "N 2"], n: int) -> list[int]:
        among = list(range(len(plane)))
        if n >= len(among):
            return among
        if self.skip_first:
            among = among[1:]
        if self.mode == "grid":
            return one_a_cell(plane, among, n, self.density)
        if self.mode == "hybrid":
            among = one_a_cell(plane, among, min(PREFILTER * n, len(among)), self.density)
        if n >= len(among):
            return among
        if self.start == "first":
            start = among[0]
        elif self.start == "medoid":
            start = among[medoid(plane_matrix(plane[among]))]
        else:
            start = among[int(np.linalg.norm(plane[among], axis=1).argmax())]
        among = sorted(among)  # so that ties go to the lower frame, whatever the cell it came from
        return [among[i] for i in farthest(plane_matrix(plane[among]), n, among.index(start))]


def valid_poses(scene: SceneView, translation: Translation) -> tuple[list[int], Float[np.ndarray, "N 4 4"]]:
    """The places in the pool that have a pose, and matrices with the rotations and translations to compare.

    Raises:
        ValueError: none has a pose.
    """
    poses = scene.poses
    places = (~poses.isnan().flatten(1).any(1)).nonzero().flatten().tolist()
    poses = poses[places]
    return places, (poses if translation == "world_to_camera" else invert_se3(poses)).numpy()
