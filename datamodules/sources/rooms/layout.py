"""Random rooms: size, scale, surfaces, camera path and furniture.

A scene is drawn without units and then multiplied by one scale: room, furniture, textures, camera height and the `loop`
path alike. A `loop` video is therefore equally likely at any scale: metric lengths can't be inferred from its frames,
only from the cameras. A `local` path has a radius in meters: single frames carry nearly no scale there, but the
parallax of the video relates the size of the room to that radius.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import numpy as np
from jaxtyping import Float64

from datamodules.sources.rooms import geometry
from datamodules.sources.rooms.furniture import CATALOG, MOVERS, Category, draw_parts, draw_surface
from datamodules.sources.rooms.paths import Ring, ring_along_walls, walk
from datamodules.sources.rooms.scene import RoomScene, Thing, Vector, to_vector

AREA_UNITS = (14.0, 26.0)  # before scaling, log-uniform; times SCALE squared: 5 to 58 square meters
SCALE = (0.62, 1.5)  # meters per unit, log-uniform
LOCAL_RADIUS_M = (0.3, 0.8)


def draw_scene(
    trajectory: Literal["loop", "local"], dynamic_objects: bool, frames: int, rng: np.random.Generator
) -> tuple[RoomScene, Float64[np.ndarray, "T 4 4"]]:
    """Draw a scene and its world-to-camera poses."""
    unit = _log_uniform(*SCALE, rng)
    area, aspect = _log_uniform(*AREA_UNITS, rng), _log_uniform(1.0, 1.25, rng)
    sides = np.array([np.sqrt(area * aspect), np.sqrt(area / aspect)])[rng.permutation(2)]
    size = np.array([*sides, rng.uniform(2.3, 3.2)]) * unit
    camera_from_room = walk(_ring(trajectory, size, unit, rng), frames, rng)
    eyes = np.linalg.inv(camera_from_room)[:, :3, 3]

    scene = draw_shell(size, unit, rng)
    movers, lanes = _movers(size, unit, eyes, rng) if dynamic_objects else ([], [])
    furniture = _furnish(lanes, size, unit, eyes, rng)
    scene = replace(scene, things=(*furniture, *movers))
    return scene, camera_from_room @ scene.room_from_world()


def draw_shell(size: np.ndarray, unit: float, rng: np.random.Generator) -> RoomScene:
    """Draw an empty room: its surfaces, lamp and pose in the world.

    Args:
        size: Length, width and height in meters.
        unit: Scale of the textures in meters.
        rng: Random generator.
    """
    wall = draw_surface((0.0, 0.0, 0.6), (1.0, 0.45, 1.0), unit, rng)
    accent = draw_surface((0.0, 0.0, 0.6), (1.0, 0.45, 1.0), unit, rng)
    walls = [wall if rng.random() < 0.7 else accent for _ in range(4)]
    floor = draw_surface((0.0, 0.05, 0.3), (1.0, 0.5, 0.8), unit, rng)
    ceiling = draw_surface((0.0, 0.0, 0.8), (1.0, 0.12, 1.0), unit, rng)
    light = size * [rng.uniform(-0.3, 0.3), rng.uniform(-0.3, 0.3), rng.uniform(0.75, 0.95)]
    origin, yaw = rng.uniform(-10, 10, 3), float(rng.uniform(-np.pi, np.pi))
    surfaces = (*walls, floor, ceiling)
    return RoomScene(to_vector(size), surfaces, (), to_vector(light), to_vector(origin), yaw)


def _ring(trajectory: str, size: np.ndarray, unit: float, rng: np.random.Generator) -> Ring:
    height = min(unit * rng.uniform(1.2, 1.75), size[2] - 0.3 * unit)
    if trajectory == "loop":
        return ring_along_walls(size, height, unit * rng.uniform(0.45, 0.55), rng)
    radius = rng.uniform(*LOCAL_RADIUS_M)
    x, y = rng.uniform(-1, 1, 2) * (size[:2] / 2 - radius - 0.1)
    return Ring((float(x), float(y), height), (radius, radius), 2.0)


def _furnish(
    lanes: list[Thing], size: np.ndarray, unit: float, eyes: np.ndarray, rng: np.random.Generator
) -> list[Thing]:
    """Place single things and one or two categories with several instances, wherever they fit."""
    big = unit * _log_uniform(0.75, 1.25, rng)  # scale of all furniture: room and furniture sizes are independent
    order = [CATALOG[i] for i in rng.permutation(len(CATALOG))]
    num_repeated = rng.integers(1, 3)
    categories = [category for category in order[:num_repeated] for _ in range(rng.integers(2, 6))]
    categories += order[num_repeated : num_repeated + rng.integers(6, 11)]
    things: list[Thing] = []
    for category in sorted(categories, key=lambda category: -category.largest[0] * category.largest[1]):
        placed = _place(category, [*lanes, *things], size, unit, big, eyes, rng)
        if placed:
            things.append(placed)
    return things


def _place(
    category: Category, things: list[Thing], size: np.ndarray, unit: float, big: float, eyes: np.ndarray,
    rng: np.random.Generator,
) -> Thing | None:  # fmt: skip
    """Place a thing free of collisions and away from the camera; None after 12 attempts."""
    extent = rng.uniform(category.smallest, category.largest) * big
    extent[2] = min(extent[2], 0.85 * size[2])
    gap = 0.03 * unit
    at_wall = category.place in ("wall", "hung")
    for _ in range(12):
        yaw = rng.uniform(-np.pi, np.pi)
        if at_wall:
            side = rng.integers(4)  # -y, +x, +y, -x
            yaw = side * np.pi / 2
        reach = geometry.footprint(np.zeros(3), extent, np.array(yaw)).max(0)
        inner = size[:2] / 2 - gap
        if (reach > inner).any():
            continue
        plan = rng.uniform(-1, 1, 2) * (inner - reach)
        if at_wall:
            slack = gap * rng.uniform(0.1, 1) if category.place == "wall" else 1e-3 * unit
            limit = size[:2] / 2 - reach - slack
            axis, sign = [(1, -1), (0, 1), (1, 1), (0, -1)][side]
            plan[axis] = sign * limit[axis]
        z, height = 0.0, unit * rng.uniform(*category.bottom)
        if category.place == "hung":
            z = min(height, 0.97 * size[2] - extent[2])
        elif category.place == "ceiling":
            z = size[2] - extent[2] - 1e-3 * unit
        center = np.array([*plan, max(z, 0.0) + extent[2] / 2])
        if _is_free(center, extent, yaw, things, gap) and is_clear(center, extent, yaw, eyes, 0.2 * unit):
            parts = draw_parts(category, to_vector(extent), rng)
            return Thing(category.name, to_vector(center), to_vector(extent), float(yaw), parts)
    return None


def _movers(
    size: np.ndarray, unit: float, eyes: np.ndarray, rng: np.random.Generator
) -> tuple[list[Thing], list[Thing]]:
    """Up to two things that move back and forth on a line with pauses, and the lanes to keep free."""
    movers: list[Thing] = []
    lanes: list[Thing] = []
    for category in [MOVERS[i] for i in rng.permutation(len(MOVERS))[: rng.integers(1, 3)]]:
        extent = rng.uniform(category.smallest, category.largest) * unit
        extent[2] = min(extent[2], eyes[:, 2].min() - 0.25 * unit)
        turning = np.array([np.hypot(*extent[:2]), np.hypot(*extent[:2]), extent[2]])  # bounds it at any yaw
        for _ in range(60):
            ends = rng.uniform(-1, 1, (2, 2)) * (size[:2] / 2 - turning[:2] / 2)
            length = float(np.linalg.norm(ends[1] - ends[0]))
            heading = float(np.arctan2(*(ends[1] - ends[0])[::-1]))
            swept, center = turning + [length, 0, 0], np.array([*ends.mean(0), extent[2] / 2])
            if length < 0.7 * unit or not _is_free(center, swept, heading, lanes, 0.03 * unit):
                continue
            track = _drive(ends, heading, len(eyes), rng)
            first = to_vector(np.array([track[0][0], track[0][1], extent[2] / 2]))
            parts = draw_parts(category, to_vector(extent), rng)
            movers.append(Thing(category.name, first, to_vector(extent), track[0][2], parts, tuple(track)))
            lanes.append(Thing("lane", to_vector(center), to_vector(swept), heading, ()))
            break
    return movers, lanes


def _drive(ends: np.ndarray, heading: float, frames: int, rng: np.random.Generator) -> list[Vector]:
    """(x, y, yaw) of each frame: back and forth one to three times, with a pause before each leg."""
    legs = rng.integers(2, 5)
    knots = np.sort(rng.uniform(0, frames, 2 * legs))
    goals = np.repeat(np.arange(legs + 1) % 2, 2)[1:-1]
    fraction = np.interp(np.arange(frames), knots, goals)
    leg = np.searchsorted(knots[1::2], np.arange(frames), side="left")
    yaw = heading - np.pi / 2 + np.pi * (leg % 2)  # the front is +y
    positions = ends[0] + fraction[:, None] * (ends[1] - ends[0])
    return [(float(x), float(y), float(angle)) for (x, y), angle in zip(positions, yaw, strict=True)]


def _is_free(center: np.ndarray, extent: np.ndarray, yaw: float, things: list[Thing], gap: float) -> bool:
    """Whether a box keeps a gap to all things: to the footprints of those that overlap in height."""
    if not things:
        return True
    other = np.array([thing.center for thing in things]), np.array([thing.size for thing in things])
    overlaps = np.abs(other[0][:, 2] - center[2]) < (other[1][:, 2] + extent[2]) / 2 + gap
    mine = geometry.footprint(center, extent + 2 * gap, np.array(yaw))[None]
    theirs = geometry.footprint(*other, np.array([thing.yaw for thing in things]))
    return not (overlaps & geometry.footprints_overlap(mine, theirs)).any()


def is_clear(center: np.ndarray, extent: np.ndarray, yaw: float, eyes: np.ndarray, distance: float) -> bool:
    """Whether all camera centers are farther than a distance in meters from a box."""
    return bool(geometry.point_distance(eyes, center, extent, yaw).min() > distance)


def _log_uniform(low: float, high: float, rng: np.random.Generator) -> float:
    return float(np.exp(rng.uniform(np.log(low), np.log(high))))
