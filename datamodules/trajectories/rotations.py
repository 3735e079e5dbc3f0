"""Conversions of rotations, and spherical interpolation, in float64."""

from __future__ import annotations

import torch
from jaxtyping import Float64
from torch import Tensor

from zoo.poses import nearest_rotation


def from_axis_angle(vectors: Float64[Tensor, "N 3"]) -> Float64[Tensor, "N 3 3"]:
    """Rotations about the vectors by their lengths in radians (Rodrigues' formula)."""
    return torch.linalg.matrix_exp(_skew(vectors))


def from_quaternion(xyzw: Float64[Tensor, "N 4"]) -> Float64[Tensor, "N 3 3"]:
    """Rotations from quaternions x, y, z, w of any length; a zero quaternion gives NaN."""
    unit = xyzw / xyzw.norm(dim=-1, keepdim=True)
    axis, w = unit[:, :3], unit[:, 3, None, None]
    outer = axis[:, :, None] * axis[:, None, :]
    identity = torch.eye(3, dtype=xyzw.dtype)
    return (2 * w * w - 1) * identity + 2 * outer + 2 * w * _skew(axis)


def to_quaternion(rotations: Float64[Tensor, "N 3 3"]) -> Float64[Tensor, "N 4"]:
    """Unit quaternions x, y, z, w of rotations, by eigenvectors (Bar-Itzhack, 2000): stable at every angle."""
    trace = rotations.diagonal(dim1=-2, dim2=-1).sum(-1)
    matrix = torch.zeros((len(rotations), 4, 4), dtype=rotations.dtype)
    identity = torch.eye(3, dtype=rotations.dtype)
    matrix[:, :3, :3] = rotations + rotations.mT - trace[:, None, None] * identity
    odd = rotations - rotations.mT
    matrix[:, :3, 3] = matrix[:, 3, :3] = torch.stack((odd[:, 2, 1], odd[:, 0, 2], odd[:, 1, 0]), -1)
    matrix[:, 3, 3] = trace
    return torch.linalg.eigh(matrix).eigenvectors[..., -1]


def slerp(
    start: Float64[Tensor, "N 3 3"], end: Float64[Tensor, "N 3 3"], fraction: Float64[Tensor, " N"]
) -> Float64[Tensor, "N 3 3"]:
    """Spherical linear interpolation on the shortest arc (Shoemake, 1985).

    Args:
        start: Rotations at fraction 0; like `end`, orthonormal to 1e-2 and projected to SO(3).
        end: Rotations at fraction 1.
        fraction: Between 0 and 1.
    """
    start = nearest_rotation(start)
    quaternion = to_quaternion(start.mT @ nearest_rotation(end))
    quaternion = torch.where(quaternion[:, 3:] < 0, -quaternion, quaternion)  # both are the same rotation
    sine = quaternion[:, :3].norm(dim=-1)
    angle = 2 * torch.atan2(sine, quaternion[:, 3])
    axis = torch.nn.functional.normalize(quaternion[:, :3], dim=-1)
    return start @ from_axis_angle((fraction * angle)[:, None] * axis)


def _skew(vectors: Float64[Tensor, "N 3"]) -> Float64[Tensor, "N 3 3"]:
    """Matrices of the cross product with the vectors."""
    zero = torch.zeros_like(vectors[:, 0])
    x, y, z = vectors.unbind(-1)
    return torch.stack((zero, -z, y, z, zero, -x, -y, x, zero), -1).reshape(-1, 3, 3)
