"""Colour, depth and object ids of a furnished room, by casting a ray through every pixel's centre.

Every box is tested only on the pixels that its projection may cover, in all frames at once, and the nearest hit
stays. Colour is worked out afterwards, once a pixel.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float32, Float64, Int, Int16, UInt8

from datamodules.sources.rooms import textures
from datamodules.sources.rooms.scene import Material, RoomScene, load_scene

SHELL = -1  # the object id of walls, floor and ceiling
NEAR = 1e-3


@dataclass(frozen=True)
class Rendering:
    """T frames: sRGB colour, depth in metres along the optical axis, and the index of the thing seen or SHELL."""

    rgb: UInt8[np.ndarray, "T H W 3"]
    depth: Float32[np.ndarray, "T H W"]
    ids: Int16[np.ndarray, "T H W"]


@dataclass(frozen=True)
class _Boxes:
    """All boxes of a scene in the room's frame; the last one is the room itself, seen from inside."""

    centre: np.ndarray  # (N, T, 3)
    yaw: np.ndarray  # (N, T)
    half: np.ndarray  # (N, 3)
    thing: np.ndarray  # (N,)
    materials: list[Material]  # one a box, six for the room
    still: np.ndarray  # (N,) bool


def render(
    scene: RoomScene,
    world_to_camera: Float64[np.ndarray, "T 4 4"],
    K_px: Float64[np.ndarray, "3 3"],
    height: int,
    width: int,
    frames: Sequence[int] | None = None,
) -> Rendering:
    """Render some frames of a scene.

    world_to_camera: the poses of just these frames (OpenCV axes, metres). K_px: without skew. frames: their indices
    in the video, which place what moves; None is 0..T-1.
    """
    camera_to_room = np.linalg.inv(world_to_camera @ np.linalg.inv(scene.room_from_world()))
    index = np.arange(len(world_to_camera)) if frames is None else np.asarray(frames)
    boxes = _gather(scene, index)
    x = (np.arange(width) + 0.5 - K_px[0, 2]) / K_px[0, 0]
    y = (np.arange(height) + 0.5 - K_px[1, 2]) / K_px[1, 1]
    rays = np.ones((3, height, width))
    rays[0], rays[1] = x, y[:, None]
    # third coordinate 1 in the camera's frame: the length along a ray is the depth
    rays = np.einsum("tij,jn->itn", camera_to_room[:, :3, :3], rays.reshape(3, -1)).astype(np.float32)
    eyes = camera_to_room[:, :3, 3]
    depth, winner = _cast(boxes, rays, eyes, np.linalg.inv(camera_to_room), K_px, height, width)
    rgb = _shade(scene, boxes, rays, eyes, depth, winner, K_px[0, 0])
    shape = (len(index), height, width)
    return Rendering(
        rgb.reshape(*shape, 3), depth.reshape(shape), boxes.thing[winner].astype(np.int16).reshape(shape)
    )


def render_scene_file(scene_json: str | Path, frames: Sequence[int] | None = None) -> Rendering:
    """Render frames of a written scene again: <scene>.scene.json, with <scene>.cameras.json beside it.

    frames: indices of raw frames, in any order, repeats allowed; None is all. Raises ValueError, naming the file.
    """
    import json

    path = Path(scene_json)
    scene = load_scene(path)
    cameras = json.loads(path.with_name(path.name.removesuffix(".scene.json") + ".cameras.json").read_text())
    poses = np.array(cameras["world_to_camera"])
    if frames is None:
        frames = range(len(poses))
    bad = [frame for frame in frames if not 0 <= frame < len(poses)]
    if bad:
        raise ValueError(f"{path}: frame {bad[0]} asked for, but the scene has frames 0 to {len(poses) - 1}")
    picked = list(frames)
    return render(
        scene, poses[picked], np.array(cameras["K_px"]), cameras["height"], cameras["width"], picked
    )


def render_depth(scene_json: str | Path, frames: Sequence[int] | None = None) -> Float32[np.ndarray, "T H W"]:
    """Depth in metres along the optical axis of frames of a written scene; see `render_scene_file`."""
    return render_scene_file(scene_json, frames).depth


def _gather(scene: RoomScene, index: Int[np.ndarray, " T"]) -> _Boxes:
    centre, yaw, half, owner, materials, still = [], [], [], [], [], []
    for number, thing in enumerate(scene.things):
        place = np.array([(*thing.centre[:2], thing.yaw)] * len(index) if not thing.track else thing.track)
        place = place if not thing.track else place[index]
        cos, sin = np.cos(place[:, 2]), np.sin(place[:, 2])
        for part in thing.parts:
            x, y, z = part.centre
            centre.append(np.stack([place[:, 0] + cos * x - sin * y, place[:, 1] + sin * x + cos * y,
                                    np.full(len(index), thing.centre[2] + z)], 1))  # fmt: skip
            yaw.append(place[:, 2])
            half.append(np.array(part.size) / 2)
            owner.append(number)
            materials.append(part.material)
            still.append(not thing.track)
    size = np.array(scene.size)
    centre.append(np.tile([0.0, 0.0, size[2] / 2], (len(index), 1)))
    yaw.append(np.zeros(len(index)))
    return _Boxes(
        np.array(centre), np.array(yaw), np.array([*half, size / 2]), np.array([*owner, SHELL]),
        [*materials, *scene.surfaces], np.array([*still, True]),
    )  # fmt: skip


def _cast(boxes, rays, eyes, room_to_camera, K_px, height, width):  # type: ignore[no-untyped-def]
    """Nearest hit of every ray: its depth (T*H*W,) and the index of its box."""
    frames, pixels = rays.shape[1:]
    flat = rays.reshape(3, -1)
    room = boxes.half[-1][:, None, None]
    origin = (eyes - boxes.centre[-1]).T[:, :, None]
    depth = ((np.copysign(room, rays) - origin) / rays).min(0).astype(np.float32).ravel()
    winner = np.full(depth.shape, len(boxes.half) - 1, np.int16)
    rectangles = _covered(boxes, room_to_camera, K_px, height, width)
    rows, columns = np.arange(height), np.arange(width)
    for box in range(len(boxes.half) - 1):
        seen = np.flatnonzero(rectangles[box, :, 0] < rectangles[box, :, 1])
        if not len(seen):
            continue
        left, right, top, bottom = rectangles[box, seen].T[:, :, None]
        mask = ((rows >= top) & (rows < bottom))[:, :, None] & ((columns >= left) & (columns < right))[
            :, None, :
        ]
        inside = np.flatnonzero(mask)
        counts = ((right - left) * (bottom - top))[:, 0]
        where = inside + np.repeat((seen - np.arange(len(seen))) * pixels, counts)
        eye = np.repeat(_turn((eyes[seen] - boxes.centre[box, seen]).T, boxes.yaw[box, seen]), counts, 1)
        ray = _turn(flat[:, where], _per_ray(boxes, box, seen, counts))
        half = boxes.half[box].astype(np.float32)[:, None]
        inverse = 1 / ray
        middle, reach = -eye.astype(np.float32) * inverse, half * np.abs(inverse)
        enter, leave = (middle - reach).max(0), (middle + reach).min(0)
        hit = np.flatnonzero((enter < leave) & (enter > NEAR) & (enter < depth[where]))
        depth[where[hit]] = enter[hit]
        winner[where[hit]] = box
    return depth, winner


def _per_ray(boxes, box, seen, counts):  # type: ignore[no-untyped-def]
    return boxes.yaw[box, 0] if boxes.still[box] else np.repeat(boxes.yaw[box, seen], counts)


def _turn(vectors, yaw):  # type: ignore[no-untyped-def]
    """(3, n) vectors of the room's frame, in the frame of a box."""
    cos, sin = np.cos(yaw).astype(vectors.dtype), np.sin(yaw).astype(vectors.dtype)
    return np.stack([cos * vectors[0] + sin * vectors[1], cos * vectors[1] - sin * vectors[0], vectors[2]])


def _covered(boxes, room_to_camera, K_px, height, width):  # type: ignore[no-untyped-def]
    """(N, T, 4): columns left..right and rows top..bottom (ends excluded) outside of which a box can't be seen."""
    signs = np.array([[i, j, k] for i in (-1, 1) for j in (-1, 1) for k in (-1, 1)])
    corners = signs * boxes.half[:-1, None, :]  # (N, 8, 3)
    cos, sin = np.cos(boxes.yaw[:-1])[..., None], np.sin(boxes.yaw[:-1])[..., None]
    x, y, z = (corners[:, None, :, axis] for axis in range(3))
    points = np.stack([cos * x - sin * y, sin * x + cos * y, z + 0 * cos], -1) + boxes.centre[:-1, :, None]
    camera = np.einsum("tij,ntcj->ntci", room_to_camera[:, :3, :3], points) + room_to_camera[:, None, :3, 3]
    z = camera[..., 2]
    safe = np.maximum(z, NEAR)
    u = K_px[0, 0] * camera[..., 0] / safe + K_px[0, 2]
    v = K_px[1, 1] * camera[..., 1] / safe + K_px[1, 2]
    sides = np.stack([np.floor(u.min(-1)), np.ceil(u.max(-1)), np.floor(v.min(-1)), np.ceil(v.max(-1))], -1)
    everything = np.array([0, width, 0, height])
    # a box that reaches behind the camera projects to no rectangle: look at all pixels
    sides = np.where((z.min(-1) < 0.02)[..., None], everything, sides)
    sides = np.where((z.max(-1) < NEAR)[..., None], 0, sides)
    sides = np.clip(sides, 0, everything[[1, 1, 3, 3]]).astype(np.int32)
    empty = (sides[..., 0] >= sides[..., 1]) | (sides[..., 2] >= sides[..., 3])
    return np.where(empty[..., None], 0, sides)


def _shade(scene, boxes, rays, eyes, depth, winner, focal_px):  # type: ignore[no-untyped-def]
    """Colour of every ray's hit: a textured, matt surface under one lamp whose light doesn't fade with distance
    (fading would tell metres)."""
    frames, pixels = rays.shape[1:]
    room = len(boxes.half) - 1
    cos, sin = np.cos(boxes.yaw).astype(np.float32), np.sin(boxes.yaw).astype(np.float32)
    eye = _local(eyes[None] - boxes.centre, boxes.yaw)
    lamp = _local(np.array(scene.light) - boxes.centre, boxes.yaw)
    pair = winner.astype(np.int32) * frames + np.repeat(np.arange(frames, dtype=np.int32), pixels)
    cos, sin = cos.ravel()[pair], sin.ravel()[pair]
    flat = rays.reshape(3, -1)
    ray = np.stack([cos * flat[0] + sin * flat[1], cos * flat[1] - sin * flat[0], flat[2]])
    hit = depth * ray + eye[:, pair]
    axis = np.abs(hit / boxes.half.T.astype(np.float32)[:, winner]).argmax(0)
    every = np.arange(len(axis))
    positive = hit[axis, every] > 0
    inside = winner == room

    towards = lamp[:, pair] - hit
    facing = np.abs(towards[axis, every]) / np.sqrt((towards**2).sum(0))
    lit = inside | ((towards[axis, every] > 0) == positive)
    light = 0.45 + 0.55 * np.where(lit, facing, 0)

    material = np.where(inside, room + 2 * axis + positive, winner)
    period = np.array([entry.period for entry in boxes.materials], np.float32)[material]
    phase = np.array([entry.phase for entry in boxes.materials], np.float32).T[:, material]
    pattern = np.array([entry.pattern for entry in boxes.materials], np.int32)[material]
    colours = np.array([entry.colours for entry in boxes.materials], np.float32)
    u = np.where(axis == 0, hit[1], hit[0]) / period + phase[0]
    v = np.where(axis == 2, hit[1], hit[2]) / period + phase[1]
    slant = np.abs(ray[axis, every]) / np.sqrt((ray**2).sum(0))
    texels = depth * (textures.SIDE / focal_px) / (period * np.sqrt(np.maximum(slant, 0.1)))
    level = np.clip(np.log2(texels) + 0.5, 0, textures.LEVELS - 1).astype(np.int32)
    side = textures.SIDE >> level
    column = np.minimum(((u - np.floor(u)) * side).astype(np.int32), side - 1)
    row = np.minimum(((v - np.floor(v)) * side).astype(np.int32), side - 1)
    value = textures.atlas()[pattern, textures.LEVEL_START[level] + row * side + column]
    first, step = colours[:, 0], colours[:, 1] - colours[:, 0]
    rgb = (first[material] + step[material] * value[:, None]) * light[:, None]
    return (np.clip(rgb, 0, 1) * 255 + 0.5).astype(np.uint8)


def _local(vectors, yaw):  # type: ignore[no-untyped-def]
    """(N, T, 3) vectors of the room's frame in the boxes' frames, as (3, N*T) float32."""
    return _turn(np.moveaxis(vectors, -1, 0).reshape(3, -1), yaw.ravel()).astype(np.float32)
