"""Quaternions (x, y, z, w) to rotations and back."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor


def quaternion_to_rotation(quaternion: Float[Tensor, "*batch 4"]) -> Float[Tensor, "*batch 3 3"]:
    """Convert quaternions (x, y, z, w) of any length but 0 to rotations: R = I + 2 (w [v] + [v]^2) / |q|^2."""
    x, y, z, w = quaternion.unbind(-1)
    zero = torch.zeros_like(w)
    cross = torch.stack((zero, -z, y, z, zero, -x, -y, x, zero), -1).unflatten(-1, (3, 3))
    # [v]^2 = v v^T - |v|^2 I, written out: a matrix product would be computed in half precision by autocast
    vector = quaternion[..., :3]
    identity = torch.eye(3, dtype=quaternion.dtype, device=quaternion.device)
    outer = vector[..., :, None] * vector[..., None, :]
    squared = outer - vector.square().sum(-1)[..., None, None] * identity
    length = quaternion.square().sum(-1)[..., None, None]
    return identity + 2 * (w[..., None, None] * cross + squared) / length


def rotation_to_quaternion(R: Float[Tensor, "*batch 3 3"]) -> Float[Tensor, "*batch 4"]:
    """Convert rotations to unit quaternions (x, y, z, w) with w >= 0.

    The entries of R yield all products 4 q_i q_j; their row of the largest q_i is divided by it (Shepperd 1978).
    """
    entry = {f"{i}{j}": R[..., i, j] for i in range(3) for j in range(3)}
    xx, yy, zz = entry["00"], entry["11"], entry["22"]
    xy, xz, yz = entry["10"] + entry["01"], entry["20"] + entry["02"], entry["21"] + entry["12"]
    wx, wy, wz = entry["21"] - entry["12"], entry["02"] - entry["20"], entry["10"] - entry["01"]
    rows = (
        (wx, wy, wz, 1 + xx + yy + zz),  # w first, so that it wins a tie
        (1 + xx - yy - zz, xy, xz, wx),
        (xy, 1 - xx + yy - zz, yz, wy),
        (xz, yz, 1 - xx - yy + zz, wz),
    )
    products = torch.stack([torch.stack(row, -1) for row in rows], -2)
    squares = torch.stack((rows[0][3], rows[1][0], rows[2][1], rows[3][2]), -1)
    largest, which = squares.max(-1, keepdim=True)
    row = products.gather(-2, which[..., None].expand(*which.shape, 4)).squeeze(-2)
    quaternion = row / (2 * largest.sqrt())
    return torch.where(quaternion[..., 3:] < 0, -quaternion, quaternion)
