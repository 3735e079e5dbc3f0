"""Shading of ray hits: textured Lambertian surfaces under one lamp.

The light has no distance falloff, which would reveal the metric scale.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float32, Int16, UInt8

from datamodules.sources.rooms import textures
from datamodules.sources.rooms.raycast import Placed
from datamodules.sources.rooms.scene import RoomScene

AMBIENT = 0.45


def shade(
    scene: RoomScene,
    placed: Placed,
    block: slice,
    rays: Float32[np.ndarray, "3 T H W"],
    depth: Float32[np.ndarray, "T H W"],
    part: Int16[np.ndarray, "T H W"],
    focal_px: float,
) -> UInt8[np.ndarray, "T H W 3"]:
    """The sRGB color of a block of frames.

    Args:
        scene: The scene.
        placed: The things in all frames.
        block: The frames of the block.
        rays: Ray directions of the block.
        depth: Depth of the hits, see `raycast.cast`.
        part: Parts hit, see `raycast.cast`.
        focal_px: Focal length in pixels.
    """
    frames = rays.shape[1]
    part = part.ravel().astype(np.intp)
    room = len(placed.thing_of_part)
    thing = np.append(placed.thing_of_part, len(placed.half) - 1)[part]
    pair = thing * frames + np.repeat(np.arange(frames), rays[0, 0].size)
    lamp = placed.turn(np.moveaxis(np.array(scene.light) - placed.center, -1, 0)).astype(np.float32)
    cos, sin = placed.cos[:, block].ravel()[pair], placed.sin[:, block].ravel()[pair]
    eye = placed.eye[:, :, block].reshape(3, -1).take(pair, 1)
    lamp = lamp[:, :, block].reshape(3, -1).take(pair, 1)

    x, y, z = rays.reshape(3, -1)
    ray = np.stack([cos * x + sin * y, cos * y - sin * x, z])
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
    light = AMBIENT + (1 - AMBIENT) * lit * np.abs(height) / _length(to_lamp)

    axis = np.where(on_x, 0, np.where(on_z, 2, 1))
    surface = np.where(inside, room + 2 * axis + side, part)
    materials = [*(part.material for thing in scene.things for part in thing.parts), *scene.surfaces]
    period = np.array([entry.period for entry in materials], np.float32)[surface]
    phase = np.array([entry.phase for entry in materials], np.float32).T.take(surface, 1)
    u = np.where(on_x, hit[1], hit[0]) / period + phase[0]
    v = np.where(on_z, hit[1], hit[2]) / period + phase[1]
    # mipmap level: texels per pixel, the geometric mean of its two extents on a slanted surface
    slant = np.maximum(np.abs(across(ray)) / _length(ray), 0.1)
    texels = depth.ravel() * np.float32(textures.SIDE / focal_px) / (period * np.sqrt(slant))
    level = np.clip(np.log2(texels) + 0.5, 0, textures.LEVELS - 1).astype(np.intp)
    pattern = np.array([entry.pattern for entry in materials])[surface]
    value = textures.atlas().ravel()[textures.texel(pattern, level, u, v)]

    colors = np.array([entry.colors for entry in materials], np.float32)
    dark = colors[:, 0].take(surface, 0)
    rgb = dark + (colors[:, 1] - colors[:, 0]).take(surface, 0) * value[:, None]
    rgb *= 255 * light[:, None]
    return np.clip(rgb + 0.5, 0, 255).astype(np.uint8).reshape(*depth.shape, 3)


def _length(vectors: np.ndarray) -> np.ndarray:
    return np.sqrt(vectors[0] ** 2 + vectors[1] ** 2 + vectors[2] ** 2)
