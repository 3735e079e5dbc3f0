"""Rotations as datasets write them, and what lies between two of them. Everything is float64."""

from __future__ import annotations

import torch
from jaxtyping import Float64
from torch import Tensor

from zoo.poses import nearest_rotation

NEARLY_EQUAL = 1e-6  # radians between two unit quaternions: below, the chord is the arc


def from_axis_angle(vectors: Float64[Tensor, "N 3"]) -> Float64[Tensor, "N 3 3"]:
    """Rotations about the vectors' directions by their lengths, in radians (Rodrigues' formula)."""
    return torch.linalg.matrix_exp(_skew(vectors))


def from_quaternion(xyzw: Float64[Tensor, "N 4"]) -> Float64[Tensor, "N 3 3"]:
    """Rotations from quaternions in the order x, y, z, w; any length but zero, which gives NaN."""
    unit = xyzw / xyzw.norm(dim=-1, keepdim=True)
    axis, w = unit[:, :3], unit[:, 3, None, None]
    square = axis[:, :, None] * axis[:, None, :]
    eye = torch.eye(3, dtype=xyzw.dtype)
    return (2 * w * w - 1) * eye + 2 * square + 2 * w * _skew(axis)


def to_quaternion(R: Float64[Tensor, "N 3 3"]) -> Float64[Tensor, "N 4"]:
    """Unit quaternions x, y, z, w of rotations: the eigenvectors of Bar-Itzhack (2000), stable at every angle."""
    trace = R.diagonal(dim1=-2, dim2=-1).sum(-1)
    matrix = torch.zeros((len(R), 4, 4), dtype=R.dtype)
    matrix[:, :3, :3] = R + R.mT - trace[:, None, None] * torch.eye(3, dtype=R.dtype)
    odd = torch.stack((R[:, 2, 1] - R[:, 1, 2], R[:, 0, 2] - R[:, 2, 0], R[:, 1, 0] - R[:, 0, 1]), -1)
    matrix[:, :3, 3] = matrix[:, 3, :3] = odd
    matrix[:, 3, 3] = trace
    return torch.linalg.eigh(matrix).eigenvectors[..., -1]


def slerp(
    start: Float64[Tensor, "N 3 3"], end: Float64[Tensor, "N 3 3"], share: Float64[Tensor, " N"]
) -> Float64[Tensor, "N 3 3"]:
    """The rotations a share of the way from start (0) to end (1), the shorter way around at an even rate.

    As Shoemake, "Animating rotation with quaternion curves", 1985. Rotations that are off by up to 1e-2 are
    projected to SO(3) first.
    """
    a, b = to_quaternion(nearest_rotation(start)), to_quaternion(nearest_rotation(end))
    cosine = (a * b).sum(-1)
    b = torch.where(cosine[:, None] < 0, -b, b)  # a quaternion and its negative are one rotation
    angle = 2 * torch.atan2((b - a).norm(dim=-1), (b + a).norm(dim=-1))
    far = angle > NEARLY_EQUAL
    sine = torch.where(far, angle.sin(), torch.ones_like(angle))
    left = torch.where(far, ((1 - share) * angle).sin() / sine, 1 - share)
    right = torch.where(far, (share * angle).sin() / sine, share)
    return from_quaternion(left[:, None] * a + right[:, None] * b)


def _skew(v: Float64[Tensor, "N 3"]) -> Float64[Tensor, "N 3 3"]:
    """Matrices that take the cross product with v."""
    zero = torch.zeros_like(v[:, 0])
    x, y, z = v.unbind(-1)
    return torch.stack((zero, -z, y, z, zero, -x, -y, x, zero), -1).reshape(-1, 3, 3)
