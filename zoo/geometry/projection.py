"""Depth maps to points and back to pixels.

Cameras as in `zoo.cameras`: world-to-camera, OpenCV axes (x right, y down, z forward). A pixel's coordinate
is its index, as in VGGT: pixel (0, 0) is seen along (-cx / fx, -cy / fy, 1), without a half pixel added.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from zoo.poses import invert_se3
from zoo.precision import full_precision, to_float32


def unproject_depth(
    depth: Float[Tensor, "*batch H W 1"],
    world_to_camera: Float[Tensor, "*batch 4 4"],
    K_px: Float[Tensor, "*batch 3 3"],
) -> Float[Tensor, "*batch H W 3"]:
    """The points that depth maps show, in the world's frame and the depth's unit; float32 or better.

    Args:
        depth: distance along the camera's z axis. Where it isn't positive the point means nothing (at 0 it is
            the camera's center); with infinite focal lengths the points lie on the optical axis.
        world_to_camera: rigid poses.
        K_px: intrinsics in pixels of the depth map, without skew.
    """
    depth, world_to_camera, K_px = to_float32(depth), to_float32(world_to_camera), to_float32(K_px)
    height, width = depth.shape[-3:-1]
    u = torch.arange(width, dtype=K_px.dtype, device=depth.device)
    v = torch.arange(height, dtype=K_px.dtype, device=depth.device)
    x = (u - K_px[..., 0, 2, None]) / K_px[..., 0, 0, None]
    y = (v - K_px[..., 1, 2, None]) / K_px[..., 1, 1, None]
    points = torch.cat((x[..., None, :, None] * depth, y[..., :, None, None] * depth, depth), -1)
    with full_precision(depth.device):
        camera_to_world = invert_se3(world_to_camera)
        rotated = points.flatten(-3, -2) @ camera_to_world[..., :3, :3].mT
        world = rotated + camera_to_world[..., None, :3, 3]
    return world.unflatten(-2, (height, width))


def by_index(K_px: Float[Tensor, "*batch 3 3"]) -> Float[Tensor, "*batch 3 3"]:
    """Intrinsics for `unproject_depth` of such as count from the picture's corner, as all data's do.

    A pixel's depth is that which is seen through its middle, half a pixel from its corner.
    """
    shifted = K_px.clone()
    shifted[..., :2, 2] -= 0.5
    return shifted


def project_points(
    points: Float[Tensor, "*#batch N 3"],
    world_to_camera: Float[Tensor, "*#batch 4 4"],
    K_px: Float[Tensor, "*#batch 3 3"],
) -> tuple[Float[Tensor, "*batch N 2"], Float[Tensor, "*batch N 3"]]:
    """World points to pixels, with broadcasting; float32 or better.

    Returns:
        Pixel coordinates, and the points in the camera's frame. What isn't in front of the camera (z <= 0)
        gets coordinates as well, which mean nothing: look at z.
    """
    points, world_to_camera, K_px = to_float32(points), to_float32(world_to_camera), to_float32(K_px)
    with full_precision(points.device):
        in_camera = points @ world_to_camera[..., :3, :3].mT + world_to_camera[..., None, :3, 3]
        on_plane = in_camera / in_camera[..., 2:]
        pixels = on_plane @ K_px.mT
    return pixels[..., :2], in_camera
