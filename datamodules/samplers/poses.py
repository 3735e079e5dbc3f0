"""Poses as points: how far they are apart, and choosing them far apart.

What the Spatial-MLLM fork's samplers compute, vectorized; the operations and their order are theirs where rounding
decides between equally far poses, so that the picks are the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
from jaxtyping import Float

Normalize = Literal["max", "std"]
ROWS = 128  # of the matrix of distances, computed at once: bounds the memory


def pose_matrix(camera_to_world: Float[np.ndarray, "N 4 4"], normalize: Normalize = "max") -> Float[np.ndarray, "N N"]:
    """The distance of each pose from each: that of their translations plus the angle between their rotations.

    Args:
        camera_to_world: poses in float64; their translations are the camera centers.
        normalize: "max" divides both parts by their largest value; "std" by their standard deviation over all pairs,
            scaled so that the two weights have mean 1 (both are 1 where one part is the same for all pairs).
    """
    translation, rotation = _translations(camera_to_world[:, :3, 3]), _angles(camera_to_world[:, :3, :3])
    if normalize == "max":
        return _by_max(translation) + _by_max(rotation)
    pairs = np.triu(np.ones(translation.shape, bool), 1)
    deviations = [np.sqrt(np.var(part[pairs])) if pairs.any() else 0.0 for part in (translation, rotation)]
    if min(deviations) == 0:
        return translation + rotation
    weights = [1.0 / deviation for deviation in deviations]
    alpha, beta = (2.0 * weight / sum(weights) for weight in weights)
    return alpha * translation + beta * rotation


def pose_plane(camera_to_world: Float[np.ndarray, "N 4 4"], normalize: Normalize = "std") -> Float[np.ndarray, "N 2"]:
    """How far each pose is from the first: of their translations, and as an angle.

    Args:
        camera_to_world: poses in float64; their translations are the camera centers.
        normalize: divides both by their largest value ("max") or their standard deviation ("std"), unless that is 0.
    """
    away = camera_to_world[:, :3, 3] - camera_to_world[0, :3, 3]
    rotations = nearest_rotations(camera_to_world[:, :3, :3])
    plane = np.stack((np.sqrt(np.vecdot(away, away)), _quaternion_angles(rotations[0].T @ rotations)), -1)
    scale = plane.max(0) if normalize == "max" else plane.std(0)
    return plane / np.where(scale > 1e-6, scale, 1.0)


def plane_matrix(plane: Float[np.ndarray, "N 2"]) -> Float[np.ndarray, "N N"]:
    """The distance of each point of a plane from each."""
    return _translations(plane)


def farthest(distances: Float[np.ndarray, "N N"], k: int, start: int) -> list[int]:
    """Farthest-point sampling: from `start` on, always the point farthest from those chosen; ties to the lower one."""
    nearest = distances[start].copy()
    chosen = [start]
    for _ in range(min(k, len(distances)) - 1):
        nearest[chosen[-1]] = -np.inf
        chosen.append(int(nearest.argmax()))
        nearest = np.minimum(nearest, distances[chosen[-1]])
    return chosen


def medoid(distances: Float[np.ndarray, "N N"]) -> int:
    """The point with the least sum of distances, added one by one."""
    return int(np.cumsum(distances, 1)[:, -1].argmin())


def one_a_cell(plane: Float[np.ndarray, "N 2"], among: Sequence[int], k: int, density: float) -> list[int]:
    """One point a cell of a square grid, the one nearest to the cell's center; the cells far from the origin first.

    Args:
        among: the points that count.
        k: how many; where fewer cells hold a point, the farthest points from the origin follow.
        density: how many cells there are for each of the k points.
    """
    side = int(np.ceil(np.sqrt(int(density * k))))
    points = plane[among]
    low, span = points.min(0), np.ptp(points, 0)
    span = np.where(span < 1e-6, 1.0, span)
    cells = np.clip(((points - low) / span * (side - 1e-6)).astype(int), 0, side - 1)
    off_center = (points - low) / span * side - (cells + 0.5)
    off_center = np.sqrt(np.vecdot(off_center, off_center))
    far = np.sqrt(np.vecdot(points, points))

    members: dict[tuple[int, int], list[int]] = {}
    for place, cell in enumerate(map(tuple, cells.tolist())):
        members.setdefault(cell, []).append(place)
    ordered = sorted(members.values(), key=lambda places: -far[places].mean())
    chosen = [places[int(off_center[places].argmin())] for places in ordered[:k]]
    rest = sorted(set(range(len(among))) - set(chosen), key=lambda place: -far[place])
    return [among[place] for place in [*chosen, *rest[: k - len(chosen)]]]


def nearest_rotations(matrices: Float[np.ndarray, "N 3 3"]) -> Float[np.ndarray, "N 3 3"]:
    """The nearest orthonormal matrices of determinant 1."""
    U, _, Vh = np.linalg.svd(matrices)
    U[..., -1] *= np.sign(np.linalg.det(U @ Vh))[..., None]
    return U @ Vh


def _translations(points: Float[np.ndarray, "N D"]) -> Float[np.ndarray, "N N"]:
    distances = np.empty((len(points), len(points)))
    for start in range(0, len(points), ROWS):
        difference = points[start : start + ROWS, None] - points
        distances[start : start + ROWS] = np.sqrt(np.vecdot(difference, difference))
    return distances


def _angles(rotations: Float[np.ndarray, "N 3 3"]) -> Float[np.ndarray, "N N"]:
    """Radians between rotations, by the trace of R_a^T R_b: the sum of its three columns' products."""
    columns = np.ascontiguousarray(np.moveaxis(nearest_rotations(rotations), -1, 0))
    products = columns @ columns.swapaxes(-1, -2)
    angles = np.arccos(np.clip((products[0] + products[1] + products[2] - 1) / 2, -1.0, 1.0))
    np.fill_diagonal(angles, 0.0)
    return angles


def _quaternion_angles(R: Float[np.ndarray, "N 3 3"]) -> Float[np.ndarray, " N"]:
    """Radians of rotations, by the quaternion (x, y, z, w): accurate near 0 and near pi."""
    trace = np.trace(R, axis1=-2, axis2=-1)
    products = np.empty((len(R), 4, 4))  # 4 q_i q_j
    for i, j, k in ((0, 1, 2), (1, 2, 0), (2, 0, 1)):
        products[:, i, i] = 1 - trace + 2 * R[:, i, i]
        products[:, i, j] = products[:, j, i] = R[:, j, i] + R[:, i, j]
        products[:, i, 3] = products[:, 3, i] = R[:, k, j] - R[:, j, k]
    products[:, 3, 3] = 1 + trace
    largest = np.diagonal(products, axis1=-2, axis2=-1).argmax(-1)
    q = products[np.arange(len(R)), largest]
    q /= np.sqrt((q * q).sum(-1, keepdims=True))
    return 2 * np.arctan2(np.sqrt((q[:, :3] ** 2).sum(-1)), np.abs(q[:, 3]))


def _by_max(values: np.ndarray) -> np.ndarray:
    largest = values.max()
    return values / largest if largest > 0 else values
