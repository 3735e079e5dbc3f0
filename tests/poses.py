"""Random poses."""

from __future__ import annotations

import torch
from torch import Tensor

from zoo.cameras.poses import quaternion_to_rotation


def random_poses(count: int, seed: int = 0) -> Tensor:
    """Return float64 poses (count, 4, 4) with uniform rotations and normal translations."""
    generator = torch.Generator().manual_seed(seed)
    poses = torch.eye(4, dtype=torch.float64).repeat(count, 1, 1)
    poses[:, :3, :3] = quaternion_to_rotation(torch.randn(count, 4, generator=generator, dtype=torch.float64))
    poses[:, :3, 3] = torch.randn(count, 3, generator=generator, dtype=torch.float64)
    return poses
