"""Rays of patches and tokens, and the 3D points on them. Cameras as in `zoo.cameras`."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from zoo.poses import invert_se3


def patch_directions(K_normalized: Float[Tensor, "S 3 3"], rows: int, columns: int) -> Float[Tensor, "S h w 3"]:
    """Where the centers of the patches are seen, in the camera's frame, one unit deep."""
    x = (torch.arange(columns).to(K_normalized) + 0.5) / columns - 0.5
    y = (torch.arange(rows).to(K_normalized) + 0.5) / rows - 0.5
    focal, principal = K_normalized.diagonal(dim1=-2, dim2=-1), K_normalized[..., 2]
    u = (x - principal[:, 0, None]) / focal[:, 0, None]
    v = (y - principal[:, 1, None]) / focal[:, 1, None]
    u, v = u[:, None, :].expand(-1, rows, -1), v[:, :, None].expand(-1, -1, columns)
    return torch.stack((u, v, torch.ones_like(u)), -1)


def plucker(direction: Float[Tensor, "*batch 3"], origin: Float[Tensor, "*#batch 3"]) -> Float[Tensor, "*batch 6"]:
    """Unit direction and moment of the lines through `origin` along `direction`."""
    unit = direction / direction.norm(dim=-1, keepdim=True)
    return torch.cat((unit, torch.linalg.cross(origin.expand_as(unit), unit)), -1)


def patch_depth(depth: Float[Tensor, "S H W"], patch: int) -> Float[Tensor, "S h w"]:
    """The median of what each patch has of depth; 0 where it has none."""
    blocks = depth.unflatten(2, (-1, patch)).unflatten(1, (-1, patch)).transpose(2, 3).flatten(3)
    return torch.where(blocks > 0, blocks, torch.nan).nanmedian(-1).values.nan_to_num(0.0)


def ray_directions(
    K_normalized: Float[Tensor, "*batch 3 3"], places: Float[Tensor, "*batch 2"]
) -> Float[Tensor, "*batch 3"]:
    """K^-1 [u, v, 1] in the camera's frame, one unit deep. Places in the units of K, see `view_patch_centers`."""
    focal, principal = K_normalized.diagonal(dim1=-2, dim2=-1)[..., :2], K_normalized[..., :2, 2]
    return torch.cat(((places - principal) / focal, torch.ones_like(places[..., :1])), -1)


def token_points(
    depth: Float[Tensor, "S H W"],
    world_to_camera: Float[Tensor, "S 4 4"],
    K_normalized: Float[Tensor, "S 3 3"],
    token_px: int = 28,
) -> Float[Tensor, "S h w 3"]:
    """The 3D point that each token shows, for `Cameras.with_tokens`: on its ray, at its median depth; float64.

    Args:
        depth: a map a grid step (of frames that are merged, the one whose camera the step has), along z; 0 where
            there is none. A token without any depth gets NaN.
        world_to_camera: a pose a step.
        K_normalized: intrinsics a step.
        token_px: the side of a token in pixels.
    """
    median = patch_depth(depth.double(), token_px)
    median = median.where(median > 0, torch.nan)
    through = patch_directions(K_normalized.double(), *median.shape[1:])
    camera_to_world = invert_se3(world_to_camera.double())[:, None, None]
    seen = (camera_to_world[..., :3, :3] @ (median[..., None] * through)[..., None])[..., 0]
    return seen + camera_to_world[..., :3, 3]
