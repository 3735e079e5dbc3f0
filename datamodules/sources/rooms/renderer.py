"""Color, depth and object ids of a room, by one ray through each pixel center."""

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

SHELL = -1  # object id of walls, floor and ceiling
BLOCK_FRAMES = 8  # frames shaded at once: few enough for the processor's cache


@dataclass(frozen=True)
class Rendering:
    """Rendered frames.

    Attributes:
        rgb: sRGB color.
        depth: Meters along the optical axis.
        ids: Index of the visible thing, or SHELL.
    """

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
    """Renders frames of a scene.

    Args:
        scene: The scene.
        world_to_camera: Poses of these frames (OpenCV axes, meters).
        K_px: Intrinsics in pixels, without skew.
        height: In pixels.
        width: In pixels.
        frames: Raw frame indices, which determine the positions of moving things; 0..T-1 if None.
    """
    placed, rays, depth, part = _cast(scene, world_to_camera, K_px, height, width, frames)
    rgb = np.empty((len(depth), height, width, 3), np.uint8)
    for start in range(0, len(depth), BLOCK_FRAMES):
        block = slice(start, start + BLOCK_FRAMES)
        rgb[block] = shade(scene, placed, block, rays[:, block], depth[block], part[block], K_px[0, 0])
    return Rendering(rgb, depth, np.append(placed.thing_of_part, SHELL).astype(np.int16)[part])


def render_depth(scene_json: str | Path, frames: Sequence[int] | None = None) -> Float32[np.ndarray, "T H W"]:
    """Renders the depth of a written scene, in meters along the optical axis; see `read_scene`."""
    _, _, depth, _ = _cast(*read_scene(scene_json, frames))
    return depth


def read_scene(
    scene_json: str | Path, frames: Sequence[int] | None = None
) -> tuple[RoomScene, Float64[np.ndarray, "T 4 4"], Float64[np.ndarray, "3 3"], int, int, list[int]]:
    """Reads the arguments of `render` from <name>.scene.json and the <name>.cameras.json beside it.

    Args:
        scene_json: The file of the scene.
        frames: Raw frames in any order; all if None.

    Raises:
        ValueError: A file is malformed, or a frame doesn't exist.
    """
    path = Path(scene_json)
    scene = load_scene(path)
    cameras = json.loads(path.with_name(path.name.removesuffix(".scene.json") + ".cameras.json").read_text())
    poses = np.array(cameras["world_to_camera"])
    indices = list(range(len(poses)) if frames is None else frames)
    if absent := [frame for frame in indices if not 0 <= frame < len(poses)]:
        raise ValueError(f"{path}: there is no frame {absent[0]}, the scene has frames 0 to {len(poses) - 1}")
    return scene, poses[indices], np.array(cameras["K_px"]), cameras["height"], cameras["width"], indices


def _cast(
    scene: RoomScene,
    world_to_camera: Float64[np.ndarray, "T 4 4"],
    K_px: Float64[np.ndarray, "3 3"],
    height: int,
    width: int,
    frames: Sequence[int] | None,
) -> tuple[Placed, Float32[np.ndarray, "3 T H W"], Float32[np.ndarray, "T H W"], Int16[np.ndarray, "T H W"]]:
    """Placed things, rays, depth, and the part that each ray hits."""
    indices = np.arange(len(world_to_camera)) if frames is None else np.asarray(frames, int)
    camera_to_room = np.linalg.inv(world_to_camera @ np.linalg.inv(scene.room_from_world()))
    placed = place(scene, indices, camera_to_room)
    rays = _rays(camera_to_room, K_px, height, width)
    return placed, rays, *cast(placed, rays, K_px, height, width)


def _rays(
    camera_to_room: Float64[np.ndarray, "T 4 4"], K_px: Float64[np.ndarray, "3 3"], height: int, width: int
) -> Float32[np.ndarray, "3 T H W"]:
    """Ray directions in the room's frame with unit depth: the length along a ray is the depth."""
    rays = np.ones((3, height, width))
    rays[0] = (np.arange(width) + 0.5 - K_px[0, 2]) / K_px[0, 0]
    rays[1] = (np.arange(height)[:, None] + 0.5 - K_px[1, 2]) / K_px[1, 1]
    turned = np.tensordot(camera_to_room[:, :3, :3], rays, axes=1)  # (T, 3, H, W)
    return np.ascontiguousarray(turned.swapaxes(0, 1), np.float32)
