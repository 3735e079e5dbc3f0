"""Color, depth and object ids of a room, by one ray through each pixel center.

Surfaces are textured and Lambertian, under one lamp. Its light has no distance falloff, which would reveal the metric
scale.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from jaxtyping import Float32, Float64, Int16, UInt8

from datamodules.depth import register_renderer
from datamodules.sources.rooms import textures
from datamodules.sources.rooms.raycast import Placed, cast, place, turn
from datamodules.sources.rooms.scene import DESCRIPTION, RoomScene, load_scene

SHELL = -1  # object id of walls, floor and ceiling
AMBIENT = 0.45  # share of light that comes from everywhere
BLOCK_FRAMES = 8  # frames shaded at once: few enough for the processor's cache


@dataclass(frozen=True)
class Rendering:
    """Rendered frames; the color is computed on first use.

    Attributes:
        scene: The scene.
        placed: The things in all frames.
        rays: Ray directions in the room's frame with unit depth: the length along a ray is the depth.
        depth: Meters along the optical axis.
        part: Parts hit, see `cast`.
        focal_px: Focal length in pixels.
    """

    scene: RoomScene
    placed: Placed
    rays: Float32[np.ndarray, "3 T H W"]
    depth: Float32[np.ndarray, "T H W"]
    part: Int16[np.ndarray, "T H W"]
    focal_px: float

    @cached_property
    def ids(self) -> Int16[np.ndarray, "T H W"]:
        """Index of the visible thing, or SHELL."""
        return np.append(self.placed.thing_of_part, SHELL).astype(np.int16)[self.part]

    @cached_property
    def rgb(self) -> UInt8[np.ndarray, "T H W 3"]:
        """The color in sRGB."""
        starts = range(0, len(self.depth), BLOCK_FRAMES)
        return np.concatenate([self._shade(slice(start, start + BLOCK_FRAMES)) for start in starts])

    def _shade(self, block: slice) -> UInt8[np.ndarray, "t H W 3"]:
        """The color of a block of frames."""
        scene, placed = self.scene, self.placed
        rays, depth = self.rays[:, block], self.depth[block]
        frames = rays.shape[1]
        part = self.part[block].ravel().astype(np.intp)
        room = len(placed.thing_of_part)
        thing = np.append(placed.thing_of_part, len(placed.half) - 1)[part]
        pair = thing * frames + np.repeat(np.arange(frames), rays[0, 0].size)
        to_light = np.moveaxis(np.array(scene.light) - placed.center, -1, 0)
        lamp = turn(to_light, placed.cos, placed.sin).astype(np.float32)
        cos, sin = placed.cos[:, block].ravel()[pair], placed.sin[:, block].ravel()[pair]
        eye = placed.eye[:, :, block].reshape(3, -1).take(pair, 1)
        lamp = lamp[:, :, block].reshape(3, -1).take(pair, 1)

        ray = turn(rays.reshape(3, -1), cos, sin)
        hit = depth.ravel() * ray + eye
        to_lamp = lamp - hit
        hit -= placed.part_center.T.take(part, 1)
        face = np.abs(hit) / placed.part_half.T.take(part, 1)
        on_x, on_z = (face[0] > face[1]) & (face[0] > face[2]), face[2] >= np.maximum(face[0], face[1])

        def across(vectors: np.ndarray) -> np.ndarray:  # component along the normal of the face
            return np.where(on_x, vectors[0], np.where(on_z, vectors[2], vectors[1]))

        side, height = across(hit) > 0, across(to_lamp)
        inside = part == room
        lit = inside | ((height > 0) == side)
        light = AMBIENT + (1 - AMBIENT) * lit * np.abs(height) / np.linalg.norm(to_lamp, axis=0)

        axis = np.where(on_x, 0, np.where(on_z, 2, 1))
        surface = np.where(inside, room + 2 * axis + side, part)
        materials = [*(part.material for thing in scene.things for part in thing.parts), *scene.surfaces]
        period = np.array([entry.period for entry in materials], np.float32)[surface]
        phase = np.array([entry.phase for entry in materials], np.float32).T.take(surface, 1)
        u = np.where(on_x, hit[1], hit[0]) / period + phase[0]
        v = np.where(on_z, hit[1], hit[2]) / period + phase[1]
        # mipmap level: texels per pixel, the geometric mean of its two extents on a slanted surface
        slant = np.maximum(np.abs(across(ray)) / np.linalg.norm(ray, axis=0), 0.1)
        texels = depth.ravel() * np.float32(textures.SIDE / self.focal_px) / (period * np.sqrt(slant))
        level = np.clip(np.log2(texels) + 0.5, 0, textures.LEVELS - 1).astype(np.intp)
        pattern = np.array([entry.pattern for entry in materials])[surface]
        value = textures.atlas().ravel()[textures.texel(pattern, level, u, v)]

        colors = np.array([entry.colors for entry in materials], np.float32)
        dark = colors[:, 0].take(surface, 0)
        rgb = dark + (colors[:, 1] - colors[:, 0]).take(surface, 0) * value[:, None]
        rgb *= 255 * light[:, None]
        return np.clip(rgb + 0.5, 0, 255).astype(np.uint8).reshape(*depth.shape, 3)


def render(
    scene: RoomScene,
    world_to_camera: Float64[np.ndarray, "T 4 4"],
    K_px: Float64[np.ndarray, "3 3"],
    height: int,
    width: int,
    frames: Sequence[int] | None = None,
) -> Rendering:
    """Render frames of a scene.

    Args:
        scene: The scene.
        world_to_camera: Poses of these frames (OpenCV axes, meters).
        K_px: Intrinsics in pixels, without skew.
        height: In pixels.
        width: In pixels.
        frames: Raw frame indices, which determine the positions of moving things; 0..T-1 if None.
    """
    indices = np.arange(len(world_to_camera)) if frames is None else np.asarray(frames, int)
    camera_to_room = np.linalg.inv(world_to_camera @ np.linalg.inv(scene.room_from_world()))
    placed = place(scene, indices, camera_to_room)
    rays = np.ones((3, height, width))
    rays[0] = (np.arange(width) + 0.5 - K_px[0, 2]) / K_px[0, 0]
    rays[1] = (np.arange(height)[:, None] + 0.5 - K_px[1, 2]) / K_px[1, 1]
    turned = np.tensordot(camera_to_room[:, :3, :3], rays, axes=1)  # (T, 3, H, W)
    rays = np.ascontiguousarray(turned.swapaxes(0, 1), np.float32)
    depth, part = cast(placed, rays, K_px, height, width)
    return Rendering(scene, placed, rays, depth, part, float(K_px[0, 0]))


def render_depth(scene_json: str | Path, frames: Sequence[int] | None = None) -> Float32[np.ndarray, "T H W"]:
    """Render the depth of a written scene, in meters along the optical axis; see `read_scene`."""
    return render(*read_scene(scene_json, frames)).depth


register_renderer(DESCRIPTION, render_depth)


def read_scene(
    scene_json: str | Path, frames: Sequence[int] | None = None
) -> tuple[RoomScene, Float64[np.ndarray, "T 4 4"], Float64[np.ndarray, "3 3"], int, int, list[int]]:
    """Read the arguments of `render` from <name>.scene.json and the <name>.cameras.json beside it.

    Args:
        scene_json: The file of the scene.
        frames: Raw frames in any order; all if None.

    Raises:
        ValueError: A file is malformed, or a frame doesn't exist.
    """
    path = Path(scene_json)
    scene = load_scene(path)
    cameras = json.loads(path.with_name(path.name.removesuffix(DESCRIPTION) + ".cameras.json").read_text())
    poses = np.array(cameras["world_to_camera"])
    indices = list(range(len(poses)) if frames is None else frames)
    if absent := [frame for frame in indices if not 0 <= frame < len(poses)]:
        raise ValueError(f"{path}: there is no frame {absent[0]}, the scene has frames 0 to {len(poses) - 1}")
    return scene, poses[indices], np.array(cameras["K_px"]), cameras["height"], cameras["width"], indices
