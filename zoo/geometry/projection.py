"""Unprojection of depth maps to points, and projection of points to pixels.

Cameras as in `zoo.cameras`: world-to-camera, OpenCV axes (x right, y down, z forward). The coordinate of a pixel is its
index, as in VGGT (pixel-center origin): the ray of pixel (0, 0) is (-cx / fx, -cy / fy, 1), without a half pixel added.
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
    """Unprojects depth maps to points in the world's frame, in the depth's unit; float32 or better.

    Args:
        depth: distance along the camera's z axis. Points are valid where it is positive (at 0 they are the camera's
            center); with infinite focal lengths they lie on the optical axis.
        world_to_camera: rigid poses.
        K_px: intrinsics in pixels of the depth map, pixel-center origin, without skew.

    Example:
        >>> import torch
        >>> K_px = torch.tensor([[2.0, 0, 0], [0, 2, 0], [0, 0, 1]])
        >>> points = unproject_depth(torch.full((2, 3, 1), 4.0), torch.eye(4), K_px)
        >>> points[1, 2].tolist()  # pixel (u, v) = (2, 1)
        [4.0, 2.0, 4.0]
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


def pixel_center_intrinsics(K_px: Float[Tensor, "*batch 3 3"]) -> Float[Tensor, "*batch 3 3"]:
    """Converts corner-origin intrinsics, those of all datasets here, to pixel-center origin for `unproject_depth`."""
    shifted = K_px.clone()
    shifted[..., :2, 2] -= 0.5
    return shifted


def project_points(
    points: Float[Tensor, "*#batch N 3"],
    world_to_camera: Float[Tensor, "*#batch 4 4"],
    K_px: Float[Tensor, "*#batch 3 3"],
) -> tuple[Float[Tensor, "*batch N 2"], Float[Tensor, "*batch N 3"]]:
    """Projects world points to pixels, with broadcasting; float32 or better.

    Returns:
        Pixel coordinates, and the points in the camera's frame. Coordinates are valid in front of the camera (z > 0).
    """
    points, world_to_camera, K_px = to_float32(points), to_float32(world_to_camera), to_float32(K_px)
    with full_precision(points.device):
        in_camera = points @ world_to_camera[..., :3, :3].mT + world_to_camera[..., None, :3, 3]
        on_plane = in_camera / in_camera[..., 2:]
        pixels = on_plane @ K_px.mT
    return pixels[..., :2], in_camera
