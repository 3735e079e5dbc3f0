"""Samplers that choose frames with distant camera poses: different places, different directions.

These are vectorized versions of the Spatial-MLLM fork's samplers. Where rounding decides between equally distant poses,
operations are in the fork's order, so that the choices are identical.
"""

from __future__ import annotations

import random
from abc import abstractmethod
from collections.abc import Sequence
from typing import Literal

import numpy as np
from jaxtyping import Float

from datamodules.samplers.base import FrameSampler, SceneView
from zoo.cameras.poses import invert_se3
from zoo.seed import resolve_seed

Normalize = Literal["max", "std"]
Translation = Literal["center", "world_to_camera"]
PREFILTER = 3  # number of points per chosen point that `PosePlaneSampler` keeps of its grid
CHUNK_ROWS = 128  # rows of the distance matrix that are computed at once, to limit the memory


class PoseSampler(FrameSampler):
    """Base class of samplers that choose among poses. Frames without a pose are never chosen.

    Attributes:
        translation: See `PoseFarthestSampler`.
    """

    translation: Translation

    def choose(self, scene: SceneView, n: int) -> list[int]:
        """Choose n distant poses.

        Raises:
            ValueError: No frame has a pose.
        """
        poses = scene.poses
        places = (~poses.isnan().flatten(1).any(1)).nonzero().flatten().tolist()
        poses = poses[places] if self.translation == "world_to_camera" else invert_se3(poses[places])
        return [places[i] for i in self.spread(poses.numpy(), n, scene)]

    @abstractmethod
    def spread(self, camera_to_world: Float[np.ndarray, "N 4 4"], n: int, scene: SceneView) -> list[int]:
        """Choose n of these poses."""


class PoseFarthestSampler(PoseSampler):
    """Farthest-point sampling of camera poses.

    The distance of two poses is the distance of their camera centers plus the angle between their rotations. Source:
    `fps` sampling of the Spatial-MLLM fork, with identical choices.

    Args:
        normalize: Divisor of distances and angles: their largest value ("max") or their standard deviation ("std").
        start: First view: the "first" frame, the "medoid" (least sum of distances), or a "random" one.
        translation: "center" compares camera centers. "world_to_camera" compares the translations of world-to-camera
            poses, which mix position and direction. It reproduces the fork's results with VGGT's poses.
        seed: Seed of a random start, together with the epoch and the video's name. null uses the run's seed.
        candidates: Number of candidates at even steps. null uses all frames.
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
        # without a random start, cached selections must not depend on the run's seed
        self.seed = resolve_seed(seed) if start == "random" else seed
        self.candidates = candidates

    @property
    def varies_by_epoch(self) -> bool:
        """See `FrameSampler`."""
        return self.start == "random"

    def spread(self, camera_to_world: Float[np.ndarray, "N 4 4"], n: int, scene: SceneView) -> list[int]:
        """See `PoseSampler`."""
        distances = pose_matrix(camera_to_world, self.normalize)
        if self.start == "random":
            draw = random.Random(f"{self.seed}/{scene.epoch}/{scene.video.path.name}")
            return farthest(distances, n, draw.randrange(len(distances)))
        return farthest(distances, n, 0 if self.start == "first" else int(distances.sum(1).argmin()))


class PosePlaneSampler(PoseSampler):
    """Spread views over a plane whose axes are distance and rotation of each camera relative to the first one.

    This is cheaper than comparing all pairs of poses, but ignores the direction of motion. Source: `efficient` sampling
    of the Spatial-MLLM fork, with identical choices.

    Args:
        mode: "grid" takes one point per cell, distant cells first. "farthest" is farthest-point sampling in the plane.
            "hybrid" is farthest-point sampling among three times as many points, one per cell.
        normalize: Divisor of both axes: their largest value ("max") or their standard deviation ("std").
        start: Start of farthest-point sampling: the point "farthest" from the origin, the "medoid", or the "first".
        skip_first: Never choose the first frame, which is the origin.
        density: Number of cells per chosen point.
        translation: See `PoseFarthestSampler`.
        candidates: Number of candidates at even steps. null uses all frames.
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

    def spread(self, camera_to_world: Float[np.ndarray, "N 4 4"], n: int, scene: SceneView) -> list[int]:
        """See `PoseSampler`."""
        plane = pose_plane(camera_to_world, self.normalize)
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
        points = sorted(points)  # ties go to the lower frame, not to the order of cells
        return [points[i] for i in farthest(pairwise_distances(plane[points]), n, points.index(start))]


# ---- Distances between poses, and choosing distant ones -------------------------------------------------------------


def pose_matrix(camera_to_world: Float[np.ndarray, "N 4 4"], normalize: Normalize = "max") -> Float[np.ndarray, "N N"]:
    """Return pairwise distances of poses: distance of translations plus angle between rotations.

    Args:
        camera_to_world: Poses in float64. Their translations are the camera centers.
        normalize: "max" divides both terms by their largest value. "std" divides them by their standard deviation over
            all pairs, with weights scaled to mean 1. If one term is constant, both weights are 1.
    """
    translation, rotation = pairwise_distances(camera_to_world[:, :3, 3]), _pairwise_angles(camera_to_world[:, :3, :3])
    if normalize == "max":
        return _divide_by_max(translation) + _divide_by_max(rotation)
    pairs = np.triu(np.ones(translation.shape, bool), 1)
    deviations = [np.sqrt(np.var(term[pairs])) if pairs.any() else 0.0 for term in (translation, rotation)]
    if min(deviations) == 0:
        return translation + rotation
    weights = [1.0 / deviation for deviation in deviations]
    alpha, beta = (2.0 * weight / sum(weights) for weight in weights)
    return alpha * translation + beta * rotation


def pose_plane(camera_to_world: Float[np.ndarray, "N 4 4"], normalize: Normalize = "std") -> Float[np.ndarray, "N 2"]:
    """Return distance and angle of each pose relative to the first.

    Args:
        camera_to_world: Poses in float64. Their translations are the camera centers.
        normalize: Divide both by their largest value ("max") or standard deviation ("std"), unless that is 0.
    """
    offset = camera_to_world[:, :3, 3] - camera_to_world[0, :3, 3]
    rotations = nearest_rotations(camera_to_world[:, :3, :3])
    plane = np.stack((np.sqrt(np.vecdot(offset, offset)), _quaternion_angles(rotations[0].T @ rotations)), -1)
    scale = plane.max(0) if normalize == "max" else plane.std(0)
    return plane / np.where(scale > 1e-6, scale, 1.0)


def farthest(distances: Float[np.ndarray, "N N"], k: int, start: int) -> list[int]:
    """Choose k points by farthest-point sampling from `start`. Ties go to the lower index."""
    nearest = distances[start].copy()
    chosen = [start]
    for _ in range(min(k, len(distances)) - 1):
        nearest[chosen[-1]] = -np.inf
        chosen.append(int(nearest.argmax()))
        nearest = np.minimum(nearest, distances[chosen[-1]])
    return chosen


def medoid(distances: Float[np.ndarray, "N N"]) -> int:
    """Return the point with the least sum of distances, added one by one as in the fork."""
    return int(np.cumsum(distances, 1)[:, -1].argmin())


def one_per_cell(plane: Float[np.ndarray, "N 2"], candidates: Sequence[int], k: int, density: float) -> list[int]:
    """Choose one point per cell of a square grid, the one nearest to the cell's center. Distant cells come first.

    Args:
        plane: All points.
        candidates: Indices of the points to choose from.
        k: Number of points. If fewer cells are occupied, the points farthest from the origin follow.
        density: Number of cells per chosen point.

    Returns:
        Indices of the chosen points.
    """
    side = int(np.ceil(np.sqrt(int(density * k))))
    points = plane[candidates]
    low, span = points.min(0), np.ptp(points, 0)
    span = np.where(span < 1e-6, 1.0, span)
    cells = np.clip(((points - low) / span * (side - 1e-6)).astype(int), 0, side - 1)
    off_center = (points - low) / span * side - (cells + 0.5)
    off_center = np.sqrt(np.vecdot(off_center, off_center))
    radius = np.sqrt(np.vecdot(points, points))

    members: dict[tuple[int, int], list[int]] = {}
    for point, cell in enumerate(map(tuple, cells.tolist())):
        members.setdefault(cell, []).append(point)
    ordered = sorted(members.values(), key=lambda points: -radius[points].mean())
    chosen = [points[int(off_center[points].argmin())] for points in ordered[:k]]
    others = sorted(set(range(len(candidates))) - set(chosen), key=lambda point: -radius[point])
    return [candidates[point] for point in [*chosen, *others[: k - len(chosen)]]]


def nearest_rotations(matrices: Float[np.ndarray, "N 3 3"]) -> Float[np.ndarray, "N 3 3"]:
    """Return the nearest orthonormal matrices of determinant 1, by SVD."""
    left, _, right = np.linalg.svd(matrices)
    left[..., -1] *= np.sign(np.linalg.det(left @ right))[..., None]
    return left @ right


def pairwise_distances(points: Float[np.ndarray, "N D"]) -> Float[np.ndarray, "N N"]:
    """Return the Euclidean distances of all pairs of points."""
    distances = np.empty((len(points), len(points)))
    for start in range(0, len(points), CHUNK_ROWS):
        difference = points[start : start + CHUNK_ROWS, None] - points
        distances[start : start + CHUNK_ROWS] = np.sqrt(np.vecdot(difference, difference))
    return distances


def _pairwise_angles(rotations: Float[np.ndarray, "N 3 3"]) -> Float[np.ndarray, "N N"]:
    """Return the angles in radians between all pairs, from the trace of R_a^T R_b summed column by column."""
    columns = np.ascontiguousarray(np.moveaxis(nearest_rotations(rotations), -1, 0))
    products = columns @ columns.swapaxes(-1, -2)
    angles = np.arccos(np.clip((products[0] + products[1] + products[2] - 1) / 2, -1.0, 1.0))
    np.fill_diagonal(angles, 0.0)
    return angles


def _quaternion_angles(rotations: Float[np.ndarray, "N 3 3"]) -> Float[np.ndarray, " N"]:
    """Return the angles of rotations in radians from their quaternions x, y, z, w, accurate near 0 and near pi."""
    trace = np.trace(rotations, axis1=-2, axis2=-1)
    products = np.empty((len(rotations), 4, 4))  # 4 q_i q_j
    for i, j, k in ((0, 1, 2), (1, 2, 0), (2, 0, 1)):
        products[:, i, i] = 1 - trace + 2 * rotations[:, i, i]
        products[:, i, j] = products[:, j, i] = rotations[:, j, i] + rotations[:, i, j]
        products[:, i, 3] = products[:, 3, i] = rotations[:, k, j] - rotations[:, j, k]
    products[:, 3, 3] = 1 + trace
    largest = np.diagonal(products, axis1=-2, axis2=-1).argmax(-1)
    q = products[np.arange(len(rotations)), largest]
    q /= np.sqrt((q * q).sum(-1, keepdims=True))
    return 2 * np.arctan2(np.sqrt((q[:, :3] ** 2).sum(-1)), np.abs(q[:, 3]))


def _divide_by_max(values: np.ndarray) -> np.ndarray:
    largest = values.max()
    return values / largest if largest > 0 else values
