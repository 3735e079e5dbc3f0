"""Color, depth and object ids of a furnished room: the nearest hit of a ray through each pixel's center."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float32, Float64, Int16, UInt8

from datamodules.sources.rooms.raycast import Placed, cast, place
from datamodules.sources.rooms.scene import RoomScene, load_scene
from datamodules.sources.rooms.shading import shade

SHELL = -1  # the object id of walls, floor and ceiling
BLOCK = 8  # frames that are shaded together: few enough to stay in the processor's cache


@dataclass(frozen=True)
class Rendering:
    """T frames: sRGB color, depth in meters along the optical axis, index of the thing seen or SHELL."""

    rgb: UInt8[np.ndarray, "T H W 3"]
    depth: Float32[np.ndarray, "T H W"]
    ids: Int16[np.ndarray, "T H W"]


def render(
    scene: RoomScene,
    world_to_camera: Float64[np.ndarray, "T 4 4"],
    K_px: Float64[np.ndarray, "3 3"],
    height: int,
    width: int,
    frames: Sequence[int] | None = None,
) -> Rendering:
    """Render some frames of a scene.

    world_to_camera: the poses of just these frames (OpenCV axes, meters). K_px: in pixels, without skew.
    frames: their indices in the video, which place what moves; None is 0..T-1.
    """
    hits = _cast(scene, world_to_camera, K_px, height, width, frames)
    rays, depth, winner = hits.rays, hits.depth, hits.winner
    rgb = np.empty((len(depth), height, width, 3), np.uint8)
    for start in range(0, len(depth), BLOCK):
        block = slice(start, start + BLOCK)
        rgb[block] = shade(scene, hits.placed, block, rays[:, block], depth[block], winner[block], K_px[0, 0])
    ids = np.append(hits.placed.thing_of_part, SHELL).astype(np.int16)[winner]
    return Rendering(rgb, depth, ids)


def render_scene_file(scene_json: str | Path, frames: Sequence[int] | None = None) -> Rendering:
    """Render frames of a written scene again: <name>.scene.json, with <name>.cameras.json beside it.

    frames: indices of raw frames, in any order; None is all. Raises ValueError, naming the file.
    """
    return render(*_read(Path(scene_json), frames))


def render_depth(scene_json: str | Path, frames: Sequence[int] | None = None) -> Float32[np.ndarray, "T H W"]:
    """Depth in meters along the optical axis of frames of a written scene, without their colors.

    Arguments and errors as `render_scene_file`.
    """
    return _cast(*_read(Path(scene_json), frames)).depth


def _read(
    path: Path, frames: Sequence[int] | None
) -> tuple[RoomScene, Float64[np.ndarray, "T 4 4"], Float64[np.ndarray, "3 3"], int, int, list[int]]:
    """What `render` takes, of a written scene."""
    scene = load_scene(path)
    cameras = json.loads(path.with_name(path.name.removesuffix(".scene.json") + ".cameras.json").read_text())
    poses = np.array(cameras["world_to_camera"])
    picked = list(range(len(poses)) if frames is None else frames)
    absent = [frame for frame in picked if not 0 <= frame < len(poses)]
    if absent:
        raise ValueError(f"{path}: there is no frame {absent[0]}, the scene has frames 0 to {len(poses) - 1}")
    return scene, poses[picked], np.array(cameras["K_px"]), cameras["height"], cameras["width"], picked


@dataclass(frozen=True)
class _Hits:
    """The rays of T frames, how far each goes, and which part it hits; the parts where they were."""

    placed: Placed
    rays: Float32[np.ndarray, "3 T H W"]
    depth: Float32[np.ndarray, "T H W"]
    winner: Int16[np.ndarray, "T H W"]


def _cast(
    scene: RoomScene,
    world_to_camera: Float64[np.ndarray, "T 4 4"],
    K_px: Float64[np.ndarray, "3 3"],
    height: int,
    width: int,
    frames: Sequence[int] | None,
) -> _Hits:
    index = np.arange(len(world_to_camera)) if frames is None else np.asarray(frames, int)
    camera_to_room = np.linalg.inv(world_to_camera @ np.linalg.inv(scene.room_from_world()))
    placed = place(scene, index, camera_to_room)
    rays = _rays(camera_to_room, K_px, height, width)
    return _Hits(placed, rays, *cast(placed, rays, K_px, height, width))


def _rays(
    camera_to_room: Float64[np.ndarray, "T 4 4"], K_px: Float64[np.ndarray, "3 3"], height: int, width: int
) -> Float32[np.ndarray, "3 T H W"]:
    """Directions in the room's frame, one meter deep: the length along a ray is the depth."""
    rays = np.ones((3, height, width))
    rays[0] = (np.arange(width) + 0.5 - K_px[0, 2]) / K_px[0, 0]
    rays[1] = (np.arange(height)[:, None] + 0.5 - K_px[1, 2]) / K_px[1, 1]
    turned = np.tensordot(camera_to_room[:, :3, :3], rays, axes=1)  # (T, 3, H, W)
    return np.ascontiguousarray(turned.swapaxes(0, 1), np.float32)
