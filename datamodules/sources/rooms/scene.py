"""Data model of a furnished room, and exact distances between its boxes.

Lengths are in meters, angles in radians. The room's frame has its origin at the center of the floor, x and y along the
walls, and z up. Things are placed in this frame. Cameras are given in the world frame, which is the room's frame
rotated by `yaw` about z and translated by `origin`. Both are random, so world coordinates carry no information.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float64

Vector = tuple[float, float, float]
DESCRIPTION = ".scene.json"  # follows the name of the video


@dataclass(frozen=True)
class Material:
    """Two colors mixed by a pattern.

    Attributes:
        pattern: Index into the texture atlas.
        colors: Two RGB colors in 0..1.
        period: Size of one repetition in meters.
        phase: Offset in periods.
    """

    pattern: int
    colors: tuple[Vector, Vector]
    period: float
    phase: tuple[float, float]


@dataclass(frozen=True)
class Part:
    """A box of a thing; `center` is relative to the thing's center, along the thing's axes."""

    center: Vector
    size: Vector
    material: Material


@dataclass(frozen=True)
class Thing:
    """A piece of furniture: an oriented bounding box that its parts fill exactly. Its front is at +y.

    Attributes:
        category: Name of the category.
        center: Center of the bounding box.
        size: Size of the bounding box along its axes.
        yaw: Rotation about z.
        parts: Boxes of the thing.
        track: For a moving thing, (x, y, yaw) of each frame; `center` and `yaw` refer to frame 0. Otherwise empty.
    """

    category: str
    center: Vector
    size: Vector
    yaw: float
    parts: tuple[Part, ...]
    track: tuple[Vector, ...] = ()


@dataclass(frozen=True)
class RoomScene:
    """A room with its furniture and its pose in the world.

    Attributes:
        size: Length, width, height.
        surfaces: Materials of the walls -x, +x, -y, +y, the floor and the ceiling.
        things: Furniture.
        light: Position of the lamp in the room's frame.
        origin: Origin of the room's frame in the world.
        yaw: Rotation of the room's frame in the world.
    """

    size: Vector
    surfaces: tuple[Material, ...]
    things: tuple[Thing, ...]
    light: Vector
    origin: Vector
    yaw: float

    @property
    def area(self) -> float:
        """Floor area in square meters."""
        return self.size[0] * self.size[1]

    def room_from_world(self) -> Float64[np.ndarray, "4 4"]:
        """Return the rigid transform from world coordinates to the room's frame."""
        cos, sin = np.cos(self.yaw), np.sin(self.yaw)
        matrix = np.eye(4)
        matrix[:2, :2] = [[cos, sin], [-sin, cos]]
        matrix[:3, 3] = -matrix[:3, :3] @ np.array(self.origin)
        return matrix


def save_scene(scene: RoomScene, path: Path) -> None:
    """Write a scene as JSON. Numbers keep all their digits."""
    path.write_text(json.dumps(scene, default=vars, separators=(",", ":")))


def load_scene(path: Path) -> RoomScene:
    """Read a scene that `save_scene` wrote.

    Raises:
        ValueError: The file is malformed.
    """
    try:
        scene = json.loads(Path(path).read_text(), object_hook=_from_json)
        if not isinstance(scene, RoomScene):
            raise TypeError("no room in it")
    except (ValueError, TypeError) as error:
        raise ValueError(
            f"{path}: not a scene of Rooms ({error}); delete its folder, and it is rendered again"
        ) from error
    return scene


def _from_json(fields: dict[str, Any]) -> Material | Part | Thing | RoomScene:
    """Build the class with these fields. Lists become tuples."""
    for kind, field in ((Material, "pattern"), (Part, "material"), (Thing, "category")):
        if field in fields:
            return kind(**to_tuples(fields))
    return RoomScene(**to_tuples(fields))


def to_tuples(value: Any) -> Any:
    """Convert lists in JSON content to tuples."""
    if isinstance(value, dict):
        return {key: to_tuples(item) for key, item in value.items()}
    return tuple(to_tuples(item) for item in value) if isinstance(value, list) else value


def to_vector(values: np.ndarray) -> Vector:
    """Convert an array to three Python floats."""
    x, y, z = np.asarray(values, float).tolist()
    return x, y, z


# ---- Exact geometry of upright boxes: a rectangle in plan times an interval in z ------------------------------------
# Arrays hold one box per row: center (..., 3) and size (..., 3) in meters, yaw (...) in radians


def footprint(
    center: Float64[np.ndarray, "*b 3"], size: Float64[np.ndarray, "*b 3"], yaw: Float64[np.ndarray, "*b"]
) -> Float64[np.ndarray, "*b 4 2"]:
    """Return the corners in plan, counter-clockwise."""
    corners = np.array([[-0.5, -0.5], [0.5, -0.5], [0.5, 0.5], [-0.5, 0.5]]) * size[..., None, :2]
    cos, sin = np.cos(yaw)[..., None], np.sin(yaw)[..., None]
    x, y = corners[..., 0], corners[..., 1]
    return np.stack([cos * x - sin * y, sin * x + cos * y], -1) + center[..., None, :2]


def footprints_overlap(a: Float64[np.ndarray, "*#b 4 2"], b: Float64[np.ndarray, "*#b 4 2"]) -> Bool[np.ndarray, "*#b"]:
    """Return whether two rectangles intersect, by the separating axis theorem."""
    overlap = np.ones(np.broadcast_shapes(a.shape, b.shape)[:-2], bool)
    for rectangle in (a, b):
        for first, second in ((0, 1), (1, 2)):
            axis = (rectangle[..., second, :] - rectangle[..., first, :])[..., None, :]
            along_a, along_b = (a * axis).sum(-1), (b * axis).sum(-1)
            overlap &= (along_a.min(-1) <= along_b.max(-1)) & (along_b.min(-1) <= along_a.max(-1))
    return overlap


def box_distance(
    center_a: Float64[np.ndarray, "*b 3"], size_a: Float64[np.ndarray, "*b 3"], yaw_a: Float64[np.ndarray, "*b"],
    center_b: Float64[np.ndarray, "*b 3"], size_b: Float64[np.ndarray, "*b 3"], yaw_b: Float64[np.ndarray, "*b"],
) -> Float64[np.ndarray, "*b"]:  # fmt: skip
    """Return the distance in meters between the closest points of two solid boxes, 0 if they intersect.

    The closest points in plan and in z are independent. Disjoint convex polygons are closest at a corner of one of
    them.
    """
    a, b = footprint(center_a, size_a, yaw_a), footprint(center_b, size_b, yaw_b)
    plan = np.minimum(_corners_to_sides(a, b), _corners_to_sides(b, a))
    plan = np.where(footprints_overlap(a, b), 0.0, plan)
    reach = (size_a[..., 2] + size_b[..., 2]) / 2
    height = np.maximum(np.abs(center_a[..., 2] - center_b[..., 2]) - reach, 0.0)
    return np.hypot(plan, height)


def point_distance(
    points: Float64[np.ndarray, "n 3"], center: Float64[np.ndarray, " 3"], size: Float64[np.ndarray, " 3"], yaw: float
) -> Float64[np.ndarray, " n"]:
    """Return the distance in meters of points to a solid box, 0 inside."""
    cos, sin = np.cos(yaw), np.sin(yaw)
    offset = points - center
    local = np.stack(
        [cos * offset[:, 0] + sin * offset[:, 1], -sin * offset[:, 0] + cos * offset[:, 1], offset[:, 2]], 1
    )
    return np.linalg.norm(np.maximum(np.abs(local) - size / 2, 0.0), axis=1)


def _corners_to_sides(
    corners: Float64[np.ndarray, "*b 4 2"], rectangle: Float64[np.ndarray, "*b 4 2"]
) -> Float64[np.ndarray, "*b"]:
    start = rectangle[..., None, :, :]
    side = np.roll(rectangle, -1, axis=-2)[..., None, :, :] - start
    offset = corners[..., :, None, :] - start
    along = np.clip((offset * side).sum(-1) / (side * side).sum(-1), 0.0, 1.0)
    return np.linalg.norm(offset - along[..., None] * side, axis=-1).min((-1, -2))
