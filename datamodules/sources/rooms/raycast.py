"""Ray casting against upright boxes (slab test), for all frames at once.

A thing is tested only on pixels that its bounding box may cover, its parts only where the bounding box is hit.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32, Float64, Int, Int16, Int32

from datamodules.sources.rooms.scene import RoomScene

NEAR_M = 1e-3
TINY = np.float32(1e-30)  # avoids division by zero, and changes no other value


@dataclass(frozen=True)
class Placed:
    """The n things of a scene in T frames; the room, seen from inside, is the last thing n with the last part m.

    Lengths are in meters; a thing's frame has its origin at the center of its bounding box.

    Attributes:
        center: In the room's frame.
        cos: Cosine of the yaw.
        sin: Sine of the yaw.
        half: Half the size.
        eye: Camera center in the thing's frame.
        thing_of_part: Thing of each part, without the room.
        part_center: In the thing's frame.
        part_half: Half the size of each part.
        room_to_camera: Pose of each frame.
    """

    center: Float64[np.ndarray, "boxes T 3"]
    cos: Float32[np.ndarray, "boxes T"]
    sin: Float32[np.ndarray, "boxes T"]
    half: Float64[np.ndarray, "boxes 3"]
    eye: Float32[np.ndarray, "3 boxes T"]
    thing_of_part: Int[np.ndarray, " parts_but_the_room"]
    part_center: Float32[np.ndarray, "parts 3"]
    part_half: Float32[np.ndarray, "parts 3"]
    room_to_camera: Float64[np.ndarray, "T 4 4"]


def turn(vectors: np.ndarray, cos: np.ndarray, sin: np.ndarray) -> np.ndarray:
    """Rotate vectors (3, ...) from the room's frame into frames with this cosine and sine of the yaw."""
    x, y, z = vectors
    return np.stack([cos * x + sin * y, cos * y - sin * x, z])


def place(scene: RoomScene, frames: Int[np.ndarray, " T"], camera_to_room: Float64[np.ndarray, "T 4 4"]) -> Placed:
    """Place all things in frames with these raw indices and camera poses."""
    still = [(*thing.center, thing.yaw) for thing in scene.things] + [(0, 0, scene.size[2] / 2, 0)]
    pose = np.tile(np.array(still, float)[:, None], (1, len(frames), 1))  # x, y, z, yaw
    for number, thing in enumerate(scene.things):
        if thing.track:
            pose[number][:, [0, 1, 3]] = np.array(thing.track)[frames]
    size = np.array([*(thing.size for thing in scene.things), scene.size])
    parts = [part for thing in scene.things for part in thing.parts]
    placed = Placed(
        pose[..., :3],
        np.cos(pose[..., 3]).astype(np.float32),
        np.sin(pose[..., 3]).astype(np.float32),
        size / 2,
        np.zeros((3, *pose.shape[:2]), np.float32),
        np.repeat(np.arange(len(scene.things)), [len(thing.parts) for thing in scene.things]),
        np.array([*(part.center for part in parts), (0, 0, 0)], np.float32),
        np.array([*(part.size for part in parts), scene.size], np.float32) / 2,
        np.linalg.inv(camera_to_room),
    )
    placed.eye[:] = turn(np.moveaxis(camera_to_room[:, :3, 3] - placed.center, -1, 0), placed.cos, placed.sin)
    return placed


def cast(
    placed: Placed,
    rays: Float32[np.ndarray, "3 T H W"],
    K_px: Float64[np.ndarray, "3 3"],
    height: int,
    width: int,
) -> tuple[Float32[np.ndarray, "T H W"], Int16[np.ndarray, "T H W"]]:
    """Depth in meters of the nearest hit of every ray, and the part hit (m for the room)."""
    pixels = height * width
    flat = rays.reshape(3, -1)
    walls = placed.part_half[-1][:, None, None, None]
    exits = (np.copysign(walls, rays) - placed.eye[:, -1, :, None, None]) / (rays + TINY)
    depth = np.minimum(np.minimum(exits[0], exits[1]), exits[2]).ravel()
    part_hit = np.full(depth.shape, len(placed.thing_of_part), np.int16)
    rectangles = bounding_rectangles(placed, K_px, height, width)
    rows, columns = np.arange(height), np.arange(width)
    for thing in range(len(placed.half) - 1):
        left, right, top, bottom = rectangles[thing].T[:, :, None]
        tall, wide = (rows >= top) & (rows < bottom), (columns >= left) & (columns < right)
        where = np.flatnonzero(tall[:, :, None] & wide[:, None, :])
        frame = where // pixels

        inverse = 1 / (turn(flat[:, where], placed.cos[thing, frame], placed.sin[thing, frame]) + TINY)
        center = -placed.eye[:, thing, frame] * inverse
        reach = np.abs(inverse)
        enter, leave = _slabs(center, reach * placed.half[thing].astype(np.float32)[:, None])
        keep = np.flatnonzero((enter < leave) & (leave > NEAR_M) & (enter < depth[where]))
        where, inverse, center, reach = where[keep], inverse[:, keep], center[:, keep], reach[:, keep]
        nearest, nearest_part = depth[where], part_hit[where]
        for part in np.flatnonzero(placed.thing_of_part == thing):
            middle = center + placed.part_center[part][:, None] * inverse
            enter, leave = _slabs(middle, placed.part_half[part][:, None] * reach)
            hit = (enter < leave) & (enter > NEAR_M) & (enter < nearest)
            np.copyto(nearest, enter, where=hit)
            nearest_part[hit] = part
        depth[where], part_hit[where] = nearest, nearest_part
    return depth.reshape(rays.shape[1:]), part_hit.reshape(rays.shape[1:])


def bounding_rectangles(
    placed: Placed, K_px: Float64[np.ndarray, "3 3"], height: int, width: int
) -> Int32[np.ndarray, "n T 4"]:
    """Bounding rectangles of the visible things in pixels: left, right, top, bottom, ends excluded."""
    signs = np.array([[i, j, k] for i in (-1, 1) for j in (-1, 1) for k in (-1, 1)])
    corner = (signs * placed.half[:-1, None, :])[:, None]  # (n, 1, 8, 3)
    cos, sin = placed.cos[:-1, :, None], placed.sin[:-1, :, None]
    x, y = cos * corner[..., 0] - sin * corner[..., 1], sin * corner[..., 0] + cos * corner[..., 1]
    points = np.stack([x, y, np.broadcast_to(corner[..., 2], x.shape)], -1) + placed.center[:-1, :, None]
    view = placed.room_to_camera
    x, y, z = np.moveaxis(np.einsum("tij,ntcj->ntci", view[:, :3, :3], points) + view[:, None, :3, 3], -1, 0)
    safe = np.maximum(z, NEAR_M)
    u, v = K_px[0, 0] * x / safe + K_px[0, 2], K_px[1, 1] * y / safe + K_px[1, 2]
    sides = np.stack([np.floor(u.min(-1)), np.ceil(u.max(-1)), np.floor(v.min(-1)), np.ceil(v.max(-1))], -1)
    # a thing that extends behind the camera has no bounding rectangle: test all pixels
    sides = np.where((z.min(-1) < NEAR_M)[..., None], [0, width, 0, height], sides)
    sides = np.clip(sides, 0, [width, width, height, height]).astype(np.int32)
    hidden = (z.max(-1) < NEAR_M) | (sides[..., 0] >= sides[..., 1]) | (sides[..., 2] >= sides[..., 3])
    return np.where(hidden[..., None], np.int32(0), sides)


def _slabs(middle: np.ndarray, reach: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Depths at which rays enter and leave a box; they miss it if enter > leave."""
    near, far = middle - reach, middle + reach
    return (
        np.maximum(np.maximum(near[0], near[1]), near[2]),
        np.minimum(np.minimum(far[0], far[1]), far[2]),
    )
