"""Rays through patches and tokens, 3D points on them, and unprojection. Cameras as in `zoo.cameras`.

The coordinate of a pixel is its index, as in VGGT (pixel-center origin). The ray of pixel (0, 0) is (-cx / fx, -cy /
fy, 1), without a half pixel added.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from zoo.cameras.poses import invert_se3
from zoo.precision import full_precision, to_float32


def ray_directions(
    K_normalized: Float[Tensor, "*#batch 3 3"], patch_centers: Float[Tensor, "*#batch 2"]
) -> Float[Tensor, "*batch 3"]:
    """Compute K^-1 [u, v, 1], the ray directions in the camera frame at unit depth.

    Args:
        K_normalized: Intrinsics normalized by the image size.
        patch_centers: (u, v) in the same units: fractions of the image width and height from the image center.
    """
    focal, principal = K_normalized.diagonal(dim1=-2, dim2=-1)[..., :2], K_normalized[..., :2, 2]
    uv = (patch_centers - principal) / focal
    return torch.cat((uv, torch.ones_like(uv[..., :1])), -1)


def grid_centers(rows: int, columns: int, like: Tensor) -> Float[Tensor, "h w 2"]:
    """Compute the centers of a grid of patches: (x, y) from -1/2 to 1/2, in the dtype and on the device of `like`."""
    x, y = ((torch.arange(count, device=like.device).to(like.dtype) + 0.5) / count - 0.5 for count in (columns, rows))
    return torch.stack(torch.meshgrid(x, y, indexing="xy"), -1)


def patch_directions(K_normalized: Float[Tensor, "S 3 3"], rows: int, columns: int) -> Float[Tensor, "S h w 3"]:
    """Compute the ray directions through the centers of a grid of patches, see `ray_directions`."""
    return ray_directions(K_normalized[:, None, None], grid_centers(rows, columns, K_normalized)[None])


def plucker(direction: Float[Tensor, "*batch 3"], origin: Float[Tensor, "*#batch 3"]) -> Float[Tensor, "*batch 6"]:
    """Compute Plücker coordinates (unit direction and moment) of lines through `origin` along `direction`."""
    unit = direction / direction.norm(dim=-1, keepdim=True)
    return torch.cat((unit, torch.linalg.cross(origin.expand_as(unit), unit)), -1)


def patch_depth(depth: Float[Tensor, "S H W"], patch: int, merged: int = 1) -> Float[Tensor, "t h w"]:
    """Compute the median of the positive depths of each patch of `patch` x `patch` pixels. 0 if there are none.

    Args:
        depth: Depth of S = t `merged` frames.
        patch: Side of a patch in pixels.
        merged: Number of consecutive frames that share one median.
    """
    blocks = depth.unflatten(2, (-1, patch)).unflatten(1, (-1, patch)).transpose(2, 3).flatten(3)
    blocks = blocks.unflatten(0, (-1, merged)).movedim(1, -2).flatten(-2)
    return torch.where(blocks > 0, blocks, torch.nan).nanmedian(-1).values.nan_to_num(0.0)


def token_points(
    depth: Float[Tensor, "S H W"],
    world_to_camera: Float[Tensor, "S 4 4"],
    K_normalized: Float[Tensor, "S 3 3"],
    token_px: int,
) -> Float[Tensor, "S h w 3"]:
    """Unproject the center of each token at the token's median depth, for `Cameras.with_tokens`.

    Args:
        depth: Z-depth per temporal patch, in the unit of the poses. 0 where unknown. If two frames are merged into one
            temporal patch, use the depth of the frame whose camera the patch has.
        world_to_camera: One pose per temporal patch.
        K_normalized: Intrinsics per temporal patch.
        token_px: Side of a token in pixels.

    Returns:
        World points in float64. NaN for tokens without any depth.
    """
    median = patch_depth(depth.double(), token_px)
    median = median.where(median > 0, torch.nan)
    directions = patch_directions(K_normalized.double(), *median.shape[1:])
    camera_to_world = invert_se3(world_to_camera.double())[:, None, None]
    rotated = (camera_to_world[..., :3, :3] @ (median[..., None] * directions)[..., None])[..., 0]
    return rotated + camera_to_world[..., :3, 3]


def unproject_depth(
    depth: Float[Tensor, "*batch H W 1"],
    world_to_camera: Float[Tensor, "*batch 4 4"],
    K_px: Float[Tensor, "*batch 3 3"],
) -> Float[Tensor, "*batch H W 3"]:
    """Unproject depth maps to points in the world frame, in the depth's unit. Float32 or better.

    Args:
        depth: Distance along the camera's z axis. Points are valid where it is positive. At 0 they are the camera's
            center. With infinite focal lengths they lie on the optical axis.
        world_to_camera: Rigid poses.
        K_px: Intrinsics in pixels of the depth map, pixel-center origin, without skew.

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
    """Convert corner-origin intrinsics, as in all datasets here, to pixel-center origin for `unproject_depth`."""
    shifted = K_px.clone()
    shifted[..., :2, 2] -= 0.5
    return shifted
