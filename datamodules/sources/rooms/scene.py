"""A furnished room as plain data: all that is needed to render it again and to know the truth about it.

Lengths are meters, angles radians. The room's own frame has its origin in the middle of the floor, x and y
along the walls and z up; things stand in that frame. The world, in which the cameras are given, is the room's
frame turned by `yaw` about z and moved by `origin`: both are arbitrary, so coordinates alone say nothing.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float64

Vector = tuple[float, float, float]


@dataclass(frozen=True)
class Material:
    """Two colors mixed by a pattern (an index into the texture atlas) that repeats every `period` meters."""

    pattern: int
    colors: tuple[Vector, Vector]  # RGB in 0..1
    period: float
    phase: tuple[float, float]  # in periods


@dataclass(frozen=True)
class Part:
    """A box of a thing; `center` is relative to the thing's center, along the thing's axes."""

    center: Vector
    size: Vector
    material: Material


@dataclass(frozen=True)
class Thing:
    """A piece of furniture: its oriented bounding box, which its parts fill exactly. Its front is at +y.

    `track` is empty for what stands still; for what moves it has (x, y, yaw) of every frame, and `center` and
    `yaw` are those of frame 0.
    """

    category: str
    center: Vector
    size: Vector
    yaw: float
    parts: tuple[Part, ...]
    track: tuple[Vector, ...] = ()


@dataclass(frozen=True)
class RoomScene:
    """The room, what stands in it, and its place in the world."""

    size: Vector  # length, width, height
    surfaces: tuple[Material, ...]  # walls -x, +x, -y, +y, floor, ceiling
    things: tuple[Thing, ...]
    light: Vector  # a lamp, in the room's frame
    origin: Vector
    yaw: float

    @property
    def area(self) -> float:
        """Square meters of floor."""
        return self.size[0] * self.size[1]

    def room_from_world(self) -> Float64[np.ndarray, "4 4"]:
        """The rigid motion that takes world coordinates to the room's frame."""
        cos, sin = np.cos(self.yaw), np.sin(self.yaw)
        matrix = np.eye(4)
        matrix[:2, :2] = [[cos, sin], [-sin, cos]]
        matrix[:3, 3] = -matrix[:3, :3] @ np.array(self.origin)
        return matrix


def save_scene(scene: RoomScene, path: Path) -> None:
    """Write a scene as JSON; numbers keep all their digits, so that reading gives back an equal scene."""
    path.write_text(json.dumps(scene, default=vars, separators=(",", ":")))


def load_scene(path: Path) -> RoomScene:
    """Read what `save_scene` wrote. Raises ValueError, naming the file, if it isn't such a file."""
    try:
        raw = json.loads(Path(path).read_text())
        things = tuple(_thing(thing) for thing in raw["things"])
        surfaces = tuple(_material(surface) for surface in raw["surfaces"])
        return RoomScene(tuple(raw["size"]), surfaces, things, tuple(raw["light"]), tuple(raw["origin"]), raw["yaw"])
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path}: not a scene written by Rooms ({error}); delete its folder, it is made again"
        ) from error


def _material(raw: dict[str, Any]) -> Material:
    first, second = raw["colors"]
    return Material(raw["pattern"], (tuple(first), tuple(second)), raw["period"], tuple(raw["phase"]))


def _thing(raw: dict[str, Any]) -> Thing:
    parts = tuple(
        Part(tuple(part["center"]), tuple(part["size"]), _material(part["material"])) for part in raw["parts"]
    )
    track = tuple(tuple(step) for step in raw["track"])
    return Thing(raw["category"], tuple(raw["center"]), tuple(raw["size"]), raw["yaw"], parts, track)
