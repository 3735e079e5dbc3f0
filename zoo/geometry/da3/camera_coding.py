"""Cameras of Depth Anything 3: its pose encoding, and the networks that decode and encode it.

The encoding is camera-to-world (VGGT's is world-to-camera): translation (3), quaternion (4) as (x, y, z, w), vertical
and horizontal field of view in radians; the principal point is the center of the image.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from zoo.cameras.poses import invert_se3, rigid_matrix
from zoo.geometry.quaternions import quaternion_to_rotation, rotation_to_quaternion
from zoo.geometry.transformer_blocks import MLP, Block
from zoo.precision import full_precision, to_float32

ENCODING = 9
SMALLEST_TANGENT = 1e-6  # a field of view of 0 is a huge focal length, not an infinite one
SMALLEST_DISTANCE = 0.1  # by which given poses are scaled


def pose_encoding_to_cameras(
    pose_enc: Float[Tensor, "*batch 9"], image_size_hw: tuple[int, int]
) -> tuple[Float[Tensor, "*batch 4 4"], Float[Tensor, "*batch 3 3"]]:
    """Convert pose encodings to world-to-camera poses and intrinsics in pixels, float32 or better."""
    pose_enc = to_float32(pose_enc)
    height, width = image_size_hw
    camera_to_world = rigid_matrix(quaternion_to_rotation(pose_enc[..., 3:7]), pose_enc[..., :3])
    tangent = torch.tan(pose_enc[..., 7:] / 2).clamp(min=SMALLEST_TANGENT)
    K_px = pose_enc.new_zeros(*pose_enc.shape[:-1], 3, 3)
    K_px[..., 0, 0], K_px[..., 1, 1] = width / 2 / tangent[..., 1], height / 2 / tangent[..., 0]
    K_px[..., 0, 2], K_px[..., 1, 2], K_px[..., 2, 2] = width / 2, height / 2, 1.0
    return invert_se3(camera_to_world), K_px


def cameras_to_pose_encoding(
    world_to_camera: Float[Tensor, "*batch 4 4"],
    K_px: Float[Tensor, "*batch 3 3"],
    image_size_hw: tuple[int, int],
) -> Float[Tensor, "*batch 9"]:
    """The inverse of `pose_encoding_to_cameras`, with unit quaternions, w >= 0; the principal point is dropped."""
    camera_to_world, K_px = invert_se3(to_float32(world_to_camera)), to_float32(K_px)
    height, width = image_size_hw
    fov_h = 2 * torch.atan((height / 2) / K_px[..., 1, 1])
    fov_w = 2 * torch.atan((width / 2) / K_px[..., 0, 0])
    quaternion = rotation_to_quaternion(camera_to_world[..., :3, :3])
    return torch.cat((camera_to_world[..., :3, 3], quaternion, fov_h[..., None], fov_w[..., None]), -1)


def normalize_poses(world_to_camera: Float[Tensor, "B S 4 4"]) -> Float[Tensor, "B S 4 4"]:
    """Make poses relative to the first view, and divide them by the median distance to it, at least 0.1.

    The camera encoder expects such poses. The median is the lower one and counts the first view itself, as in the
    official code: of two views it is 0.
    """
    poses = to_float32(world_to_camera)
    with full_precision(poses.device):
        relative = poses @ invert_se3(poses[:, :1])
    # |t| of world-to-camera is the distance of the center from the world's origin
    distance = relative[..., :3, 3].norm(dim=-1).median(1).values.clamp(min=SMALLEST_DISTANCE)
    return rigid_matrix(relative[..., :3, :3], relative[..., :3, 3] / distance[:, None, None])


class CameraDecoder(nn.Module):
    """Camera tokens to pose encodings.

    Args:
        dim_in: Width of the trunk's outputs.
    """

    def __init__(self, dim_in: int) -> None:
        super().__init__()
        self.backbone = nn.Sequential(nn.Linear(dim_in, dim_in), nn.ReLU(), nn.Linear(dim_in, dim_in), nn.ReLU())
        self.fc_t = nn.Linear(dim_in, 3)
        self.fc_qvec = nn.Linear(dim_in, 4)
        self.fc_fov = nn.Sequential(nn.Linear(dim_in, 2), nn.ReLU())

    def forward(self, tokens: Float[Tensor, "B S D"]) -> Float[Tensor, "B S 9"]:
        """The pose encoding of each view, float32 or better; a field of view can be exactly 0."""
        x = self.backbone(tokens)
        return to_float32(torch.cat((self.fc_t(x), self.fc_qvec(x), self.fc_fov(x)), -1))

    @torch.no_grad()
    def init_identity_pose(self) -> None:
        """Make an untrained decoder predict about the identity and a field of view of one radian.

        With random weights the field of view is often below 0, where the ReLU passes no gradient.
        """
        for layer, bias in ((self.fc_t, [0, 0, 0]), (self.fc_qvec, [0, 0, 0, 1]), (self.fc_fov, [1, 1])):
            weight, start = layer.parameters()
            weight.mul_(0.1)
            start.copy_(start.new_tensor(bias))


class CameraEncoder(nn.Module):
    """DatasetGeometries cameras to camera tokens, which replace the learned ones.

    Args:
        dim_out: Width C of the trunk's tokens.
        trunk_depth: Number of self-attention blocks over the views of a scene.
        num_heads: Of these blocks.
    """

    def __init__(self, dim_out: int, trunk_depth: int = 4, num_heads: int = 16) -> None:
        super().__init__()
        self.pose_branch = MLP(ENCODING, dim_out // 2, dim_out)
        self.token_norm = nn.LayerNorm(dim_out)
        self.trunk = nn.Sequential(*[Block(dim_out, num_heads) for _ in range(trunk_depth)])
        self.trunk_norm = nn.LayerNorm(dim_out)

    def forward(
        self,
        world_to_camera: Float[Tensor, "B S 4 4"],
        K_px: Float[Tensor, "B S 3 3"],
        image_size_hw: tuple[int, int],
    ) -> Float[Tensor, "B S C"]:
        """One token per camera; poses are used as they are, see `normalize_poses`."""
        encoding = cameras_to_pose_encoding(world_to_camera, K_px, image_size_hw)
        tokens = self.pose_branch(encoding.to(self.token_norm.weight.dtype))
        return self.trunk_norm(self.trunk(self.token_norm(tokens)))
