"""Layouts of real rooms: a rectangle of the real area with furniture of real sizes near its real places.

Known of a real room are its area and the boxes of some things; walls, height and camera path are random. Things are
moved only as far as the rectangle requires; things in the camera's path are removed.
"""

from __future__ import annotations

import zlib
from dataclasses import replace

import numpy as np
from jaxtyping import Float64

from datamodules.sources.rooms import geometry
from datamodules.sources.rooms.furniture import CATALOG, Category, draw_parts
from datamodules.sources.rooms.layout import draw_shell, is_clear
from datamodules.sources.rooms.paths import ring_along_walls, walk
from datamodules.sources.rooms.real_boxes import RealRoom, bounds
from datamodules.sources.rooms.scene import RoomScene, Thing, to_vector

MAX_ASPECT = 2.0  # of the rectangle: a few boxes in a row are no corridor
WALL_GAP_M = 0.01
CEILING_M = (2.3, 2.9)
CLEARANCE_M = 0.2  # between the camera and things
INSETS_M = (0.45, 0.7, 0.95, 1.2)  # candidates: distance of the camera path from the walls
THINNEST_M = 0.02

KNOWN = {category.name: category for category in CATALOG}
SIMILAR = {
    "washing machine": "washer", "dishwasher": "washer", "oven": "stove", "microwave": "stove",
    "trash can": "trash bin", "bucket": "trash bin", "basket": "trash bin", "radiator": "heater",
    "table lamp": "lamp", "monitor": "tv", "laptop": "tv", "mattress": "bed", "crate": "nightstand",
    "counter": "nightstand", "shoe rack": "bookshelf", "backpack": "suitcase", "guitar": "suitcase",
}  # fmt: skip


def draw_real_room(
    room: RealRoom, frames: int, varied: bool, rng: np.random.Generator
) -> tuple[RoomScene, Float64[np.ndarray, "T 4 4"]]:
    """Draw a layout and its world-to-camera poses.

    Args:
        room: The real room.
        frames: Number of frames.
        varied: Mirror, rotate and scale the room at random by up to 15 %, for training; else the area is the real one.
        rng: Random generator.
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
    camera_from_room, things = _choose_path(size, things, frames, rng)
    scene = replace(draw_shell(size, 1.0, rng), things=tuple(things))
    return scene, camera_from_room @ scene.room_from_world()


def _varied(room: RealRoom, rng: np.random.Generator) -> RealRoom:
    scale = np.exp(rng.uniform(-0.15, 0.15))
    centers, sizes, yaws = room.centers * scale, room.sizes * scale, room.yaws
    if rng.random() < 0.5:  # mirror
        centers, yaws = centers * [-1, 1, 1], -yaws
    if rng.random() < 0.5:  # quarter turn
        centers, yaws = centers[:, [1, 0, 2]] * [-1, 1, 1], yaws + np.pi / 2
    return replace(room, area=room.area * scale**2, centers=centers, sizes=sizes, yaws=yaws)


def _floor(room: RealRoom) -> float:
    """Height of the floor: the lower edge of the lowest standing thing."""
    bottoms = room.centers[:, 2] - room.sizes[:, 2] / 2
    standing = [name in KNOWN and KNOWN[name].place in ("floor", "wall") for name in room.categories]
    return float(bottoms[standing].min() if any(standing) else bottoms.min(initial=0.0))


def _furnish(
    room: RealRoom, low: np.ndarray, extent: np.ndarray, floor: float, size: np.ndarray, rng: np.random.Generator
) -> list[Thing]:
    """Place things inside the walls; things larger than the room are removed."""
    shrink = np.minimum(1.0, size[:2] / extent)
    slack = size[:2] - extent * shrink
    shift = rng.uniform(-0.5, 0.5, 2) * slack
    things = []
    for category, center, box, yaw in zip(room.categories, room.centers, room.sizes, room.yaws, strict=True):
        box = np.maximum(box, THINNEST_M)
        template = _template(category)
        plan = (center[:2] - low - extent / 2) * shrink + shift
        box, yaw = _orient(template, box, yaw, plan)
        reach = geometry.footprint(np.zeros(3), box, np.array(yaw)).max(0)
        limit = size[:2] / 2 - reach - WALL_GAP_M
        if (limit < 0).any() or box[2] > size[2]:
            continue
        plan = np.clip(plan, -limit, limit)
        z = np.clip(center[2] - floor, box[2] / 2, size[2] - box[2] / 2)
        parts = draw_parts(template, to_vector(box), rng)
        things.append(Thing(category, to_vector(np.array([*plan, z])), to_vector(box), float(yaw), parts))
    return things


def _template(name: str) -> Category:
    """The catalog entry of a category; unknown categories are boxes with a front, colored by name."""
    if known := KNOWN.get(SIMILAR.get(name, name)):
        return known
    hue = zlib.crc32(name.encode()) % 360 / 360
    recipe = ((0, 1, 0, 0.95, 0, 1, 0), (0.1, 0.9, 0.95, 1, 0.1, 0.9, 1))
    colors = ((hue, 0.6, 0.6), (hue, 0.4, 0.85))
    return Category(name, "floor", (0.2, 0.2, 0.2), (0.5, 0.5, 0.5), colors, recipe)


def _orient(template: Category, box: np.ndarray, yaw: float, plan: np.ndarray) -> tuple[np.ndarray, float]:
    """The same box with its front +y towards the center of the room, and its longer side as in the catalog."""
    typical = np.array(template.smallest[:2]) + template.largest[:2]
    if (typical[0] - typical[1]) * (box[0] - box[1]) < 0:
        box, yaw = box[[1, 0, 2]], yaw + np.pi / 2
    front = np.array([-np.sin(yaw), np.cos(yaw)])
    return box, yaw if front @ -plan >= 0 else yaw + np.pi


def _choose_path(
    size: np.ndarray, things: list[Thing], frames: int, rng: np.random.Generator
) -> tuple[Float64[np.ndarray, "T 4 4"], list[Thing]]:
    """The camera path that collides with the fewest things, and the other things."""
    height = min(rng.uniform(1.2, 1.75), size[2] - 0.3)
    paths = []
    for inset in INSETS_M:
        poses = walk(ring_along_walls(size, height, inset, rng), frames, rng)
        eyes = np.linalg.inv(poses)[:, :3, 3]
        kept = [t for t in things if is_clear(np.array(t.center), np.array(t.size), t.yaw, eyes, CLEARANCE_M)]
        paths.append((poses, kept))
    return max(paths, key=lambda path: len(path[1]))
