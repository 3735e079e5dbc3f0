"""Distances of camera poses, and choosing distant ones.

Vectorized versions of the Spatial-MLLM fork's samplers. Where rounding decides between equally distant poses, the
operations and their order are the fork's, so that the choices are identical.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
from jaxtyping import Float

Normalize = Literal["max", "std"]
CHUNK_ROWS = 128  # rows of the distance matrix computed at once: bounds the memory


def pose_matrix(camera_to_world: Float[np.ndarray, "N 4 4"], normalize: Normalize = "max") -> Float[np.ndarray, "N N"]:
    """Pairwise distances of poses: distance of translations plus angle between rotations.

    Args:
        camera_to_world: Poses in float64; their translations are the camera centers.
        normalize: "max" divides both terms by their largest value; "std" by their standard deviation over all pairs,
            with weights scaled to mean 1 (both are 1 if one term is constant).
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
    """Distance and angle of each pose from the first.

    Args:
        camera_to_world: Poses in float64; their translations are the camera centers.
        normalize: Divides both by their largest value ("max") or standard deviation ("std"), unless that is 0.
    """
    offset = camera_to_world[:, :3, 3] - camera_to_world[0, :3, 3]
    rotations = nearest_rotations(camera_to_world[:, :3, :3])
    plane = np.stack((np.sqrt(np.vecdot(offset, offset)), _quaternion_angles(rotations[0].T @ rotations)), -1)
    scale = plane.max(0) if normalize == "max" else plane.std(0)
    return plane / np.where(scale > 1e-6, scale, 1.0)


def farthest(distances: Float[np.ndarray, "N N"], k: int, start: int) -> list[int]:
    """Farthest-point sampling of k points from `start`; ties go to the lower index."""
    nearest = distances[start].copy()
    chosen = [start]
    for _ in range(min(k, len(distances)) - 1):
        nearest[chosen[-1]] = -np.inf
        chosen.append(int(nearest.argmax()))
        nearest = np.minimum(nearest, distances[chosen[-1]])
    return chosen


def medoid(distances: Float[np.ndarray, "N N"]) -> int:
    """The point with the least sum of distances, added one by one as in the fork."""
    return int(np.cumsum(distances, 1)[:, -1].argmin())


def one_per_cell(plane: Float[np.ndarray, "N 2"], candidates: Sequence[int], k: int, density: float) -> list[int]:
    """One point per cell of a square grid, the one nearest to the cell's center; cells far from the origin first.

    Args:
        plane: All points.
        candidates: Indices of the points to choose from.
        k: Number of points; if fewer cells are occupied, the points farthest from the origin follow.
        density: Cells per chosen point.

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
    """The nearest orthonormal matrices of determinant 1, by SVD."""
    left, _, right = np.linalg.svd(matrices)
    left[..., -1] *= np.sign(np.linalg.det(left @ right))[..., None]
    return left @ right


def pairwise_distances(points: Float[np.ndarray, "N D"]) -> Float[np.ndarray, "N N"]:
    """Euclidean distances of all pairs of points."""
    distances = np.empty((len(points), len(points)))
    for start in range(0, len(points), CHUNK_ROWS):
        difference = points[start : start + CHUNK_ROWS, None] - points
        distances[start : start + CHUNK_ROWS] = np.sqrt(np.vecdot(difference, difference))
    return distances


def _pairwise_angles(rotations: Float[np.ndarray, "N 3 3"]) -> Float[np.ndarray, "N N"]:
    """Radians between all pairs of rotations, by the trace of R_a^T R_b summed column by column."""
    columns = np.ascontiguousarray(np.moveaxis(nearest_rotations(rotations), -1, 0))
    products = columns @ columns.swapaxes(-1, -2)
    angles = np.arccos(np.clip((products[0] + products[1] + products[2] - 1) / 2, -1.0, 1.0))
    np.fill_diagonal(angles, 0.0)
    return angles


def _quaternion_angles(rotations: Float[np.ndarray, "N 3 3"]) -> Float[np.ndarray, " N"]:
    """Radians of rotations, by their quaternions x, y, z, w: accurate near 0 and near pi."""
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
