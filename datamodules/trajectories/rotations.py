"""Rotations about an axis, and between two rotations, in float64."""

from __future__ import annotations

import torch
from jaxtyping import Float64
from torch import Tensor

from zoo.cameras.poses import nearest_rotation, so3_log


def from_axis_angle(vectors: Float64[Tensor, "N 3"]) -> Float64[Tensor, "N 3 3"]:
    """Rotations about the vectors by their lengths in radians (Rodrigues' formula)."""
    return torch.linalg.matrix_exp(_skew(vectors))


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
    return start @ from_axis_angle(fraction[:, None] * so3_log(start.mT @ nearest_rotation(end)))


def _skew(vectors: Float64[Tensor, "N 3"]) -> Float64[Tensor, "N 3 3"]:
    """Matrices of the cross product with the vectors."""
    zero = torch.zeros_like(vectors[:, 0])
    x, y, z = vectors.unbind(-1)
    return torch.stack((zero, -z, y, z, zero, -x, -y, x, zero), -1).reshape(-1, 3, 3)
