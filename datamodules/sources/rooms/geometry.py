"""Exact geometry of upright oriented boxes: a rectangle in plan times an interval in z.

Arrays hold one box per row: center (…, 3) and size (…, 3) in meters, yaw (…) in radians.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float64

Array = np.ndarray


def footprint(
    center: Float64[Array, "*b 3"], size: Float64[Array, "*b 3"], yaw: Float64[Array, "*b"]
) -> Float64[Array, "*b 4 2"]:
    """Corners in plan, counter-clockwise."""
    corners = np.array([[-0.5, -0.5], [0.5, -0.5], [0.5, 0.5], [-0.5, 0.5]]) * size[..., None, :2]
    cos, sin = np.cos(yaw)[..., None], np.sin(yaw)[..., None]
    x, y = corners[..., 0], corners[..., 1]
    return np.stack([cos * x - sin * y, sin * x + cos * y], -1) + center[..., None, :2]


def footprints_overlap(a: Float64[Array, "*#b 4 2"], b: Float64[Array, "*#b 4 2"]) -> Bool[Array, "*#b"]:
    """Whether two rectangles intersect, by the separating axis theorem."""
    overlap = np.ones(np.broadcast_shapes(a.shape, b.shape)[:-2], bool)
    for rectangle in (a, b):
        for first, second in ((0, 1), (1, 2)):
            axis = (rectangle[..., second, :] - rectangle[..., first, :])[..., None, :]
            along_a, along_b = (a * axis).sum(-1), (b * axis).sum(-1)
            overlap &= (along_a.min(-1) <= along_b.max(-1)) & (along_b.min(-1) <= along_a.max(-1))
    return overlap


def box_distance(
    center_a: Float64[Array, "*b 3"], size_a: Float64[Array, "*b 3"], yaw_a: Float64[Array, "*b"],
    center_b: Float64[Array, "*b 3"], size_b: Float64[Array, "*b 3"], yaw_b: Float64[Array, "*b"],
) -> Float64[Array, "*b"]:  # fmt: skip
    """Distance in meters of the closest points of two solid boxes, 0 if they intersect.

    The closest points in plan and in z are independent; disjoint convex polygons are closest at a corner of one.
    """
    a, b = footprint(center_a, size_a, yaw_a), footprint(center_b, size_b, yaw_b)
    plan = np.minimum(_corners_to_sides(a, b), _corners_to_sides(b, a))
    plan = np.where(footprints_overlap(a, b), 0.0, plan)
    reach = (size_a[..., 2] + size_b[..., 2]) / 2
    height = np.maximum(np.abs(center_a[..., 2] - center_b[..., 2]) - reach, 0.0)
    return np.hypot(plan, height)


def point_distance(
    points: Float64[Array, "n 3"], center: Float64[Array, " 3"], size: Float64[Array, " 3"], yaw: float
) -> Float64[Array, " n"]:
    """Distance in meters of points to a solid box, 0 inside."""
    cos, sin = np.cos(yaw), np.sin(yaw)
    offset = points - center
    local = np.stack(
        [cos * offset[:, 0] + sin * offset[:, 1], -sin * offset[:, 0] + cos * offset[:, 1], offset[:, 2]], 1
    )
    return np.linalg.norm(np.maximum(np.abs(local) - size / 2, 0.0), axis=1)


def _corners_to_sides(corners: Float64[Array, "*b 4 2"], rectangle: Float64[Array, "*b 4 2"]) -> Float64[Array, "*b"]:
    start = rectangle[..., None, :, :]
    side = np.roll(rectangle, -1, axis=-2)[..., None, :, :] - start
    offset = corners[..., :, None, :] - start
    along = np.clip((offset * side).sum(-1) / (side * side).sum(-1), 0.0, 1.0)
    return np.linalg.norm(offset - along[..., None] * side, axis=-1).min((-1, -2))
