"""Predicted cameras, of which some are none."""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from zoo.cameras import normalize_intrinsics


def valid_cameras(
    pose_enc: Float[Tensor, "B S 9"], size_hw: tuple[int, int], to_cameras: Callable[..., tuple[Tensor, Tensor]]
) -> tuple[Float[Tensor, "B S 4 4"], Float[Tensor, "B S 3 3"], Bool[Tensor, "B S"]]:
    """Cameras of pose encodings, with identities in place of invalid ones.

    Invalid are a field of view of 0, which the head can output and which is an infinite focal length, or of pi and
    more; a quaternion of length 0; and numbers that are not finite.

    Args:
        pose_enc: Translation, quaternion, vertical and horizontal field of view.
        size_hw: Of the images in pixels.
        to_cameras: Converts pose encodings to world-to-camera poses and intrinsics in pixels.

    Returns:
        world_to_camera, K_normalized, and a mask of the valid cameras.
    """
    fov = pose_enc[..., 7:]
    valid = pose_enc.isfinite().all(-1) & (fov > 0).all(-1) & (fov < torch.pi).all(-1)
    valid = valid & (pose_enc[..., 3:7].square().sum(-1) > 0)
    # replaced before as well as after the conversion: an infinity that is only masked afterwards gives NaN gradients
    harmless = torch.zeros_like(pose_enc)
    harmless[..., 6:] = 1  # a quaternion of length one, and two fields of view
    world_to_camera, K_px = to_cameras(torch.where(valid[..., None], pose_enc, harmless), size_hw)
    K = normalize_intrinsics(K_px, size_hw[1], size_hw[0])
    keep = valid[..., None, None]
    identity = torch.eye(4, dtype=K.dtype, device=K.device)
    return torch.where(keep, world_to_camera, identity), torch.where(keep, K, identity[:3, :3]), valid
