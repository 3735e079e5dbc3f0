"""VGGT's pose encoding: translation (3), quaternion (4), vertical and horizontal field of view in radians.

Translation and rotation are world-to-camera, x_camera = R x_world + t, in the scene's own scale, with the first frame
as the world. The quaternion is (x, y, z, w) of any length but 0; the principal point is the center of the image.
Source: arXiv 2503.11651, section 3.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from zoo.cameras.poses import rigid_matrix
from zoo.geometry.quaternions import quaternion_to_rotation, rotation_to_quaternion
from zoo.precision import to_float32


def pose_encoding_to_cameras(
    pose_enc: Float[Tensor, "*batch 9"], image_size_hw: tuple[int, int]
) -> tuple[Float[Tensor, "*batch 4 4"], Float[Tensor, "*batch 3 3"]]:
    """Convert pose encodings to world-to-camera poses and intrinsics in pixels, float32 or better.

    The camera head can predict a field of view of exactly 0, an infinite focal length, which `zoo.Cameras` rejects.
    """
    pose_enc = to_float32(pose_enc)
    height, width = image_size_hw
    world_to_camera = rigid_matrix(quaternion_to_rotation(pose_enc[..., 3:7]), pose_enc[..., :3])
    K_px = pose_enc.new_zeros(*pose_enc.shape[:-1], 3, 3)
    K_px[..., 0, 0] = (width / 2) / torch.tan(pose_enc[..., 8] / 2)
    K_px[..., 1, 1] = (height / 2) / torch.tan(pose_enc[..., 7] / 2)
    K_px[..., 0, 2] = width / 2
    K_px[..., 1, 2] = height / 2
    K_px[..., 2, 2] = 1.0
    return world_to_camera, K_px


def cameras_to_pose_encoding(
    world_to_camera: Float[Tensor, "*batch 4 4"],
    K_px: Float[Tensor, "*batch 3 3"],
    image_size_hw: tuple[int, int],
) -> Float[Tensor, "*batch 9"]:
    """The inverse of `pose_encoding_to_cameras`, with unit quaternions, w >= 0; the principal point is dropped."""
    world_to_camera, K_px = to_float32(world_to_camera), to_float32(K_px)
    height, width = image_size_hw
    fov_h = 2 * torch.atan((height / 2) / K_px[..., 1, 1])
    fov_w = 2 * torch.atan((width / 2) / K_px[..., 0, 0])
    quaternion = rotation_to_quaternion(world_to_camera[..., :3, :3])
    return torch.cat((world_to_camera[..., :3, 3], quaternion, fov_h[..., None], fov_w[..., None]), dim=-1)
