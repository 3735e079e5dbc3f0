"""Color, depth and object ids of a room, by one ray through each pixel center.

Surfaces are textured and Lambertian, under one lamp. Nothing in a frame reveals the metric scale: the lamp's light does
not fall off with distance, and the period of each surface's pattern is random.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path

import numpy as np
from jaxtyping import Float32, Float64, Int, Int16, Int32, UInt8

from datamodules.depth import register_renderer
from datamodules.sources.rooms.scene import DESCRIPTION, RoomScene, load_scene

# ---- Textures: an atlas of tileable patterns with mipmaps, from a fixed seed ----------------------------------------

SIDE = 64
LEVELS = 7  # 64, 32, ... 1
LEVEL_START = np.cumsum([0] + [(SIDE >> level) ** 2 for level in range(LEVELS)])
TEXELS = int(LEVEL_START[-1])  # number of texels of a pattern
PLAIN = 3  # the first patterns are faint noise, used for furniture


@cache
def atlas() -> Float32[np.ndarray, "patterns texels"]:
    """Return the values of all patterns in 0..1. A pattern's texels are its mipmap levels, each in row order."""
    rng = np.random.default_rng(20)
    v, u = np.mgrid[0:SIDE, 0:SIDE] / SIDE
    noises = [_noise(rng, cells) for cells in (4, 8, 16, 32)]
    clouds = sum(noise * weight for noise, weight in zip(noises, (0.5, 0.25, 0.15, 0.1), strict=True))
    wave = lambda x: 0.5 + 0.5 * np.sin(2 * np.pi * x)  # noqa: E731
    row = np.floor(v * 8)
    patterns = [
        0.35 * clouds, 0.35 * noises[2], 0.25 * noises[3] + 0.1 * noises[1],
        clouds, noises[1], 0.6 * noises[2] + 0.4 * noises[0],
        wave(4 * u), (np.floor(u * 6 + 0.01) % 2), wave(2 * u) * 0.5 + wave(8 * u) * 0.5,
        (np.floor(u * 4) + np.floor(v * 4)) % 2,
        ((u * 4 % 1 < 0.1) | (v * 4 % 1 < 0.1)) * 1.0,
        (((u * 4 + 0.5 * (row % 2)) % 1 < 0.08) | (v * 8 % 1 < 0.15)) * 0.9 + 0.1 * noises[2],
        rng.random(8)[row.astype(int)] * 0.6 + 0.4 * _noise(rng, 4, 32),
        (np.hypot(u * 4 % 1 - 0.5, v * 4 % 1 - 0.5) < 0.25) * 1.0,
        wave(3 * u + 0.35 * np.sin(2 * np.pi * 2 * v)),
        wave(2 * u + 2 * v + 1.2 * clouds),
        (np.abs((u * 4 + v * 4) % 2 - 1) < 0.3) * 1.0,
        (noises[3] > 0.72) * 1.0,
        _noise(rng, 2, 32), np.maximum(wave(4 * u), wave(4 * v)) ** 4,
    ]  # fmt: skip
    return np.stack([_mipmaps(pattern) for pattern in patterns])


def texel(
    pattern: Int[np.ndarray, " n"],
    level: Int[np.ndarray, " n"],
    u: Float32[np.ndarray, " n"],
    v: Float32[np.ndarray, " n"],
) -> Int[np.ndarray, " n"]:
    """Return the indices into the flattened atlas of the texels at (u, v) (in periods) on a mipmap level."""
    side = SIDE >> level
    column = ((u - np.floor(u)) * SIDE).astype(np.intp) % SIDE >> level  # %, because a fraction may round up to 1
    row = ((v - np.floor(v)) * SIDE).astype(np.intp) % SIDE >> level
    return pattern * TEXELS + LEVEL_START[level] + row * side + column


def _noise(rng: np.random.Generator, rows: int, columns: int | None = None) -> np.ndarray:
    """Interpolate random values on a coarse periodic grid smoothly."""
    columns = columns or rows
    grid = rng.random((rows, columns))
    for axis, cells in ((0, rows), (1, columns)):
        position = np.arange(SIDE) * cells / SIDE
        low, blend = position.astype(int), position % 1
        blend = (blend * blend * (3 - 2 * blend)).reshape((-1, 1) if axis == 0 else (1, -1))
        grid = np.take(grid, low, axis) * (1 - blend) + np.take(grid, (low + 1) % cells, axis) * blend
    return (grid - grid.min()) / np.ptp(grid)


def _mipmaps(pattern: np.ndarray) -> np.ndarray:
    levels = [pattern.astype(np.float32)]
    while len(levels) < LEVELS:
        last = levels[-1]
        levels.append(last.reshape(last.shape[0] // 2, 2, last.shape[1] // 2, 2).mean((1, 3)))
    return np.concatenate([level.ravel() for level in levels])


# ---- Ray casting against upright boxes (slab test), for all frames at once ------------------------------------------
# A thing is tested only on pixels that its bounding box may cover, and its parts only where the bounding box is hit

NEAR_M = 1e-3
TINY = np.float32(1e-30)  # avoids division by zero, and changes no other value


@dataclass(frozen=True)
class Placed:
    """The n things of a scene in T frames. The room, seen from inside, is the last thing n with the last part m.

    Lengths are in meters. A thing's frame has its origin at the center of its bounding box.

    Attributes:
        center: Center of each thing in the room's frame.
        cos: Cosine of the yaw.
        sin: Sine of the yaw.
        half: Half the size of each thing.
        eye: Camera center in the thing's frame.
        thing_of_part: Thing of each part, without the room.
        part_center: Center of each part in the thing's frame.
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
    """Rotate vectors (3, ...) from the room's frame into frames with these cosines and sines of the yaw."""
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
    """Return the depth in meters of the nearest hit of every ray, and the part that is hit (m for the room)."""
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
    """Return the bounding rectangles of the visible things in pixels: left, right, top, bottom, ends excluded."""
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
    # a thing that extends behind the camera has no bounding rectangle, so test all pixels
    sides = np.where((z.min(-1) < NEAR_M)[..., None], [0, width, 0, height], sides)
    sides = np.clip(sides, 0, [width, width, height, height]).astype(np.int32)
    hidden = (z.max(-1) < NEAR_M) | (sides[..., 0] >= sides[..., 1]) | (sides[..., 2] >= sides[..., 3])
    return np.where(hidden[..., None], np.int32(0), sides)


def _slabs(middle: np.ndarray, reach: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the depths at which rays enter and leave a box. A ray misses the box if enter > leave."""
    near, far = middle - reach, middle + reach
    return (
        np.maximum(np.maximum(near[0], near[1]), near[2]),
        np.minimum(np.minimum(far[0], far[1]), far[2]),
    )


# ---- Shading, and the renderer --------------------------------------------------------------------------------------

SHELL = -1  # object id of walls, floor and ceiling
AMBIENT = 0.45  # share of light that comes from all directions
BLOCK_FRAMES = 8  # frames that are shaded at once, few enough for the processor's cache


@dataclass(frozen=True)
class Rendering:
    """Rendered frames. The color is computed on first use.

    Attributes:
        scene: The scene.
        placed: The things in all frames.
        rays: Ray directions in the room's frame with unit depth, so that the length along a ray is the depth.
        depth: Depth in meters along the optical axis.
        part: The part that each ray hits, see `cast`.
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
        """Compute the color of a block of frames."""
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
        texels = depth.ravel() * np.float32(SIDE / self.focal_px) / (period * np.sqrt(slant))
        level = np.clip(np.log2(texels) + 0.5, 0, LEVELS - 1).astype(np.intp)
        pattern = np.array([entry.pattern for entry in materials])[surface]
        value = atlas().ravel()[texel(pattern, level, u, v)]

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
        height: Height in pixels.
        width: Width in pixels.
        frames: Raw frame indices, which determine the positions of moving things. None uses 0..T-1.
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
        frames: Raw frames in any order. None reads all.

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
