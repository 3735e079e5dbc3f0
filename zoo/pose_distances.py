"""How far poses are apart, as one number: five measures, and the length of a path.

All are unchanged by a common change of world V -> V G, since they see V_a V_b^-1 alone. Float64 throughout.
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from zoo.poses import invert_se3, pose_distance

PoseMeasure = Literal["rotation", "center", "euclidean", "sum", "log"]


@torch.no_grad()
def pose_distances(
    world_to_camera_a: Float[Tensor, "*#batch 4 4"],
    world_to_camera_b: Float[Tensor, "*#batch 4 4"],
    measure: PoseMeasure = "euclidean",
    translation_weight: int | float = 1.0,
) -> Float[Tensor, "*batch"]:
    """One number for how far poses are apart, with broadcasting; exactly 0 between equal poses.

    With w the angle between them (radians), t the distance of their centers, and lambda the weight:
    `rotation` is w; `center` lambda t; `euclidean` sqrt(w^2 + lambda^2 t^2); `sum` w + lambda t; `log` the
    Frobenius norm of log(V_a V_b^-1), sqrt(2 |omega|^2 + lambda^2 |u|^2), the length of the screw motion
    between them. No gradient reaches the poses.

    Args:
        world_to_camera_a, world_to_camera_b: rigid poses.
        measure: see above.
        translation_weight: lambda, radians that a unit of length (a meter, for metric poses) counts as.

    Raises:
        ValueError: an unknown measure.
    """
    if measure not in get_args(PoseMeasure):
        raise ValueError(f"unknown pose measure {measure!r}: one of {', '.join(get_args(PoseMeasure))}")
    a, b = world_to_camera_a.double(), world_to_camera_b.double()
    if measure == "log":
        omega, u = se3_log(a @ invert_se3(b)).split(3, -1)
        distance = (2 * omega.square().sum(-1) + translation_weight**2 * u.square().sum(-1)).sqrt()
    else:
        angle, centers = pose_distance(a, b)
        centers = translation_weight * centers
        distance = {
            "rotation": lambda: angle,
            "center": lambda: centers,
            "euclidean": lambda: torch.hypot(angle, centers),
            "sum": lambda: angle + centers,
        }[measure]()
    # R R^T is the identity up to rounding only, and a bias of 1e-16 is not the stock model
    return distance.masked_fill((a == b).all(-1).all(-1), 0.0)


def path_length(
    world_to_camera: Float[Tensor, "N 4 4"], measure: PoseMeasure = "euclidean", translation_weight: int | float = 1.0
) -> Float[Tensor, " N"]:
    """The length of the path from the first pose to each, leg by leg; see `pose_distances`."""
    legs = pose_distances(world_to_camera[1:], world_to_camera[:-1], measure, translation_weight)
    return torch.cat((legs.new_zeros(1), legs.cumsum(0)))[: len(world_to_camera)]


def so3_log(R: Float[Tensor, "*batch 3 3"]) -> Float[Tensor, "*batch 3"]:
    """The rotation vectors omega, |omega| <= pi, with R = exp([omega]x); float64.

    Up to a right angle the axis is read off R - R^T, beyond it off R + R^T, so that neither end loses digits.
    """
    R = R.double()
    skew = R - R.mT
    vector = torch.stack((skew[..., 2, 1], skew[..., 0, 2], skew[..., 1, 0]), -1) / 2  # sin(angle) * axis
    sine, cosine = vector.norm(dim=-1), (R.diagonal(dim1=-2, dim2=-1).sum(-1) - 1) / 2
    angle = torch.atan2(sine, cosine)[..., None]
    near = vector / torch.sinc(angle / torch.pi)  # sinc(x / pi) = sin(x) / x, 1 at 0

    eye = torch.eye(3, dtype=R.dtype, device=R.device)
    outer = (R + R.mT) / 2 - cosine[..., None, None] * eye  # (1 - cos(angle)) * axis axis^T
    largest = outer.diagonal(dim1=-2, dim2=-1).argmax(-1)
    axis = outer.gather(-1, largest[..., None, None].expand(*largest.shape, 3, 1))[..., 0]
    axis = axis / axis.norm(dim=-1, keepdim=True).clamp(min=torch.finfo(R.dtype).tiny)
    sign = torch.where((axis * vector).sum(-1, keepdim=True) < 0, -1.0, 1.0)
    return torch.where(cosine[..., None] > 0, near, sign * angle * axis)


def se3_log(M: Float[Tensor, "*batch 4 4"]) -> Float[Tensor, "*batch 6"]:
    """(omega, u) with M = exp([[ [omega]x, u ], [0, 0]]); |omega| <= pi; float64."""
    M = M.double()
    omega, t = so3_log(M[..., :3, :3]), M[..., :3, 3]
    square = omega.square().sum(-1, keepdim=True)
    half = square.sqrt() / 2
    series = 1 / 12 + square / 720 + square.square() / 30240  # (1 - x cot x) / (4 x^2) cancels for small x
    closed = (1 - half * half.cos() / half.sin()) / square
    across = torch.linalg.cross(omega, t)
    u = t - across / 2 + torch.where(half < 0.01, series, closed) * torch.linalg.cross(omega, across)
    return torch.cat((omega, u), -1)
