"""Rays through patches and tokens, and 3D points on them; cameras as defined in `zoo.cameras`."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from zoo.poses import invert_se3


def ray_directions(
    K_normalized: Float[Tensor, "*#batch 3 3"], patch_centers: Float[Tensor, "*#batch 2"]
) -> Float[Tensor, "*batch 3"]:
    """Computes K^-1 [u, v, 1], the ray directions in the camera frame at unit depth.

    Args:
        K_normalized: intrinsics normalized by the image size.
        patch_centers: (u, v) in the same units: fractions of the image width and height from the image center.
    """
    focal, principal = K_normalized.diagonal(dim1=-2, dim2=-1)[..., :2], K_normalized[..., :2, 2]
    uv = (patch_centers - principal) / focal
    return torch.cat((uv, torch.ones_like(uv[..., :1])), -1)


def patch_directions(K_normalized: Float[Tensor, "S 3 3"], rows: int, columns: int) -> Float[Tensor, "S h w 3"]:
    """Computes the ray directions through the centers of a grid of patches; see `ray_directions`."""
    x = (torch.arange(columns).to(K_normalized) + 0.5) / columns - 0.5
    y = (torch.arange(rows).to(K_normalized) + 0.5) / rows - 0.5
    centers = torch.stack(torch.meshgrid(x, y, indexing="xy"), -1)
    return ray_directions(K_normalized[:, None, None], centers[None])


def plucker(direction: Float[Tensor, "*batch 3"], origin: Float[Tensor, "*#batch 3"]) -> Float[Tensor, "*batch 6"]:
    """Computes Plücker coordinates, the unit direction and the moment, of lines through `origin` along `direction`."""
    unit = direction / direction.norm(dim=-1, keepdim=True)
    return torch.cat((unit, torch.linalg.cross(origin.expand_as(unit), unit)), -1)


def patch_depth(depth: Float[Tensor, "S H W"], patch: int) -> Float[Tensor, "S h w"]:
    """Computes the median of the positive depths of each patch of `patch` x `patch` pixels; 0 if there are none."""
    blocks = depth.unflatten(2, (-1, patch)).unflatten(1, (-1, patch)).transpose(2, 3).flatten(3)
    return torch.where(blocks > 0, blocks, torch.nan).nanmedian(-1).values.nan_to_num(0.0)


def token_points(
    depth: Float[Tensor, "S H W"],
    world_to_camera: Float[Tensor, "S 4 4"],
    K_normalized: Float[Tensor, "S 3 3"],
    token_px: int = 28,
) -> Float[Tensor, "S h w 3"]:
    """Unprojects the center of each token at the token's median depth, for `Cameras.with_tokens`.

    Args:
        depth: z-depth per temporal patch, in the unit of the poses; 0 where unknown. If two frames are merged into
            one temporal patch, the depth of the frame whose camera the patch has.
        world_to_camera: one pose per temporal patch.
        K_normalized: intrinsics per temporal patch.
        token_px: side of a token in pixels.

    Returns:
        World points in float64; NaN for tokens without any depth.
    """
    median = patch_depth(depth.double(), token_px)
    median = median.where(median > 0, torch.nan)
    directions = patch_directions(K_normalized.double(), *median.shape[1:])
    camera_to_world = invert_se3(world_to_camera.double())[:, None, None]
    rotated = (camera_to_world[..., :3, :3] @ (median[..., None] * directions)[..., None])[..., 0]
    return rotated + camera_to_world[..., :3, 3]
