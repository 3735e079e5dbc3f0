"""Draws a stand-in of a real room: a rectangle of its area with its furniture, as large as it is and about where.

What is known of a real room is its area and the boxes of some things; its walls, its height and the camera's way are
drawn. Things are moved only so far as the rectangle demands; one that is in the camera's way is left out.
"""

from __future__ import annotations

import zlib
from dataclasses import replace

import numpy as np
from jaxtyping import Float64

from datamodules.sources.rooms import geometry
from datamodules.sources.rooms.furniture import CATALOGUE, Category, draw_parts, draw_surface
from datamodules.sources.rooms.paths import Ring, walk
from datamodules.sources.rooms.real_boxes import RealRoom, bounds
from datamodules.sources.rooms.scene import RoomScene, Thing, Vector

MAX_ASPECT = 2.0  # of the rectangle: a few boxes in a row don't make a corridor
WALL_GAP_M = 0.01
CEILING_M = (2.3, 2.9)
CLEARANCE_M = 0.2  # between the camera and what stands around
INSETS_M = (0.45, 0.7, 0.95, 1.2)  # of the camera's way from the walls, as far as the room is wide enough
THINNEST_M = 0.02

KNOWN = {category.name: category for category in CATALOGUE}
LOOKS_LIKE = {
    "washing machine": "washer", "dishwasher": "washer", "oven": "stove", "microwave": "stove",
    "trash can": "trash bin", "bucket": "trash bin", "basket": "trash bin", "radiator": "heater",
    "table lamp": "lamp", "monitor": "tv", "laptop": "tv", "mattress": "bed", "crate": "nightstand",
    "counter": "nightstand", "shoe rack": "bookshelf", "backpack": "suitcase", "guitar": "suitcase",
}  # fmt: skip


def draw_real_room(
    room: RealRoom, frames: int, varied: bool, rng: np.random.Generator
) -> tuple[RoomScene, Float64[np.ndarray, "T 4 4"]]:
    """A stand-in and its world-to-camera poses.

    varied: mirror and turn the room at random and make all of it up to 15 % larger or smaller, for training; else
    its area is the real one.
    """
    if varied:
        room = _varied(room, rng)
    low, high = bounds(room) if room.categories else (np.zeros(2), np.ones(2))
    extent = np.maximum(high - low, 0.1)
    aspect = np.clip(extent[0] / extent[1], 1 / MAX_ASPECT, MAX_ASPECT)
    sides = np.array([np.sqrt(room.area * aspect), np.sqrt(room.area / aspect)])
    floor = _floor(room)
    top = (room.centers[:, 2] + room.sizes[:, 2] / 2).max(initial=floor) - floor
    size = np.array([*sides, max(rng.uniform(*CEILING_M), top + WALL_GAP_M)])

    things = _furnish(room, low, extent, floor, size, rng)
    camera_from_room, things = _way(size, things, frames, rng)
    wall = draw_surface((0.0, 0.0, 0.6), (1.0, 0.45, 1.0), 1.0, rng)
    other = draw_surface((0.0, 0.0, 0.6), (1.0, 0.45, 1.0), 1.0, rng)
    walls = [wall if rng.random() < 0.7 else other for _ in range(4)]
    ground = draw_surface((0.0, 0.05, 0.3), (1.0, 0.5, 0.8), 1.0, rng)
    ceiling = draw_surface((0.0, 0.0, 0.8), (1.0, 0.12, 1.0), 1.0, rng)
    light = size * [rng.uniform(-0.3, 0.3), rng.uniform(-0.3, 0.3), rng.uniform(0.75, 0.95)]
    scene = RoomScene(
        _vector(size), (*walls, ground, ceiling), tuple(things), _vector(light),
        _vector(rng.uniform(-10, 10, 3)), float(rng.uniform(-np.pi, np.pi)),
    )  # fmt: skip
    return scene, camera_from_room @ scene.room_from_world()


def _varied(room: RealRoom, rng: np.random.Generator) -> RealRoom:
    scale = np.exp(rng.uniform(-0.15, 0.15))
    centers, sizes, yaws = room.centers * scale, room.sizes * scale, room.yaws
    if rng.random() < 0.5:  # a mirror
        centers, yaws = centers * [-1, 1, 1], -yaws
    if rng.random() < 0.5:  # a quarter turn
        centers, yaws = centers[:, [1, 0, 2]] * [-1, 1, 1], yaws + np.pi / 2
    return replace(room, area=room.area * scale**2, centers=centers, sizes=sizes, yaws=yaws)


def _floor(room: RealRoom) -> float:
    """The height of the floor: the lower edge of what stands lowest."""
    bottoms = room.centers[:, 2] - room.sizes[:, 2] / 2
    standing = [KNOWN[name].place in ("floor", "wall") if name in KNOWN else False for name in room.categories]
    return float(bottoms[standing].min() if any(standing) else bottoms.min(initial=0.0))


def _furnish(
    room: RealRoom, low: np.ndarray, extent: np.ndarray, floor: float, size: np.ndarray, rng: np.random.Generator
) -> list[Thing]:
    """The things inside of the walls; those that are larger than the room are left out."""
    shrink = np.minimum(1.0, size[:2] / extent)
    slack = size[:2] - extent * shrink
    shift = rng.uniform(-0.5, 0.5, 2) * slack
    things = []
    for category, center, box, yaw in zip(room.categories, room.centers, room.sizes, room.yaws, strict=True):
        box = np.maximum(box, THINNEST_M)
        looks = _looks(category)
        plan = (center[:2] - low - extent / 2) * shrink + shift
        box, yaw = _facing(looks, box, yaw, plan)
        reach = geometry.footprint(np.zeros(3), box, np.array(yaw)).max(0)
        limit = size[:2] / 2 - reach - WALL_GAP_M
        if (limit < 0).any() or box[2] > size[2]:
            continue
        plan = np.clip(plan, -limit, limit)
        z = np.clip(center[2] - floor, box[2] / 2, size[2] - box[2] / 2)
        placed = np.array([*plan, z])
        things.append(
            Thing(category, _vector(placed), _vector(box), float(yaw), draw_parts(looks, _vector(box), rng))
        )  # fmt: skip
    return things


def _looks(name: str) -> Category:
    """How a category is drawn; one that the catalog doesn't know is a box with a front, in a color of its own."""
    known = KNOWN.get(LOOKS_LIKE.get(name, name))
    if known:
        return known
    hue = zlib.crc32(name.encode()) % 360 / 360
    recipe = ((0, 1, 0, 0.95, 0, 1, 0), (0.1, 0.9, 0.95, 1, 0.1, 0.9, 1))
    return Category(
        name, "floor", (0.2, 0.2, 0.2), (0.5, 0.5, 0.5), ((hue, 0.6, 0.6), (hue, 0.4, 0.85)), recipe
    )  # fmt: skip


def _facing(looks: Category, box: np.ndarray, yaw: float, plan: np.ndarray) -> tuple[np.ndarray, float]:
    """The same box with its front, +y, towards the middle of the room and its width where the category has it."""
    wide = np.array(looks.smallest[:2]) + looks.largest[:2]
    if (wide[0] - wide[1]) * (box[0] - box[1]) < 0:
        box, yaw = box[[1, 0, 2]], yaw + np.pi / 2
    front = np.array([-np.sin(yaw), np.cos(yaw)])
    return box, yaw if front @ -plan >= 0 else yaw + np.pi


def _way(
    size: np.ndarray, things: list[Thing], frames: int, rng: np.random.Generator
) -> tuple[Float64[np.ndarray, "T 4 4"], list[Thing]]:
    """The way around the room that the fewest things are in, and the others."""
    height = min(rng.uniform(1.2, 1.75), size[2] - 0.3)
    half = size[:2] / 2
    ways = []
    for inset in INSETS_M:
        reach = half - np.minimum(inset, half * 0.6)
        ring = Ring((0.0, 0.0, float(height)), (float(reach[0]), float(reach[1])), rng.uniform(6.0, 12.0))
        poses = walk(ring, frames, rng)
        eyes = np.linalg.inv(poses)[:, :3, 3]
        ways.append((poses, [thing for thing in things if _is_clear(thing, eyes)]))
    return max(ways, key=lambda way: len(way[1]))


def _is_clear(thing: Thing, eyes: np.ndarray) -> bool:
    distance = geometry.point_distance(eyes, np.array(thing.center), np.array(thing.size), thing.yaw)
    return bool(distance.min() > CLEARANCE_M)


def _vector(values: np.ndarray) -> Vector:
    x, y, z = np.asarray(values, float).tolist()
    return x, y, z
