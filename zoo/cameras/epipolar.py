"""Two-view geometry: how well a pose explains points that were matched between two images.

A point at x in one image lies on a line in the other, which follows from the relative pose up to the length of its
translation and its sign. The sign follows from the depth: what is seen lies in front of both cameras.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor


def epipolar_error(
    relative: Float[Tensor, "4 4"],
    K_px_a: Float[Tensor, "3 3"],
    K_px_b: Float[Tensor, "3 3"],
    points_a: Float[Tensor, "N 2"],
    points_b: Float[Tensor, "N 2"],
) -> Float[Tensor, " N"]:
    """Compute the Sampson distance of matches to their epipolar lines, in pixels.

    Args:
        relative: Maps points of camera a to camera b, V_b V_a^-1.
        K_px_a: Intrinsics of a in pixels.
        K_px_b: Intrinsics of b in pixels.
        points_a: Matched points in the image of a, in pixels.
        points_b: The same points in the image of b.

    Example:
        >>> import torch
        >>> relative, K = torch.eye(4), torch.eye(3)
        >>> relative[0, 3] = -1.0  # b is to the right of a: points keep their row
        >>> a, b = torch.tensor([[0.0, 0.0], [0.0, 0.0]]), torch.tensor([[-5.0, 0.0], [-5.0, 2.0]])
        >>> [round(error, 2) for error in epipolar_error(relative, K, K, a, b).tolist()]
        [0.0, 1.41]
    """
    R, (x, y, z) = relative[:3, :3], relative[:3, 3]
    zero = torch.zeros_like(x)
    cross = torch.stack((zero, -z, y, z, zero, -x, -y, x, zero)).reshape(3, 3)
    F = torch.linalg.inv(K_px_b).mT @ cross @ R @ torch.linalg.inv(K_px_a)
    a, b = _homogeneous(points_a), _homogeneous(points_b)
    line_b, line_a = a @ F.mT, b @ F
    gradient = (line_a[:, :2].square() + line_b[:, :2].square()).sum(1)
    return (b * line_b).sum(1).abs() / gradient.sqrt().clamp_min(torch.finfo(gradient.dtype).tiny)


def triangulated_depths(
    relative: Float[Tensor, "4 4"],
    K_px_a: Float[Tensor, "3 3"],
    K_px_b: Float[Tensor, "3 3"],
    points_a: Float[Tensor, "N 2"],
    points_b: Float[Tensor, "N 2"],
) -> tuple[Float[Tensor, " N"], Float[Tensor, " N"]]:
    """Compute the depth of matched points in both cameras; arguments are those of `epipolar_error`.

    Returns:
        Depth along the z axis of a and of b; negative where the rays meet behind the camera, NaN where they are
        parallel.

    Example:
        >>> import torch
        >>> relative, K = torch.eye(4), torch.eye(3)
        >>> relative[2, 3] = -1.0  # b is one unit ahead of a
        >>> triangulated_depths(relative, K, K, torch.tensor([[0.5, 0.0]]), torch.tensor([[1.0, 0.0]]))
        (tensor([2.]), tensor([1.]))
    """
    ray_a = _homogeneous(points_a) @ (relative[:3, :3] @ torch.linalg.inv(K_px_a)).mT  # in b's axes
    ray_b = _homogeneous(points_b) @ torch.linalg.inv(K_px_b).mT
    t = relative[:3, 3].expand_as(ray_a)
    normal = torch.linalg.cross(ray_b, ray_a)
    length = normal.square().sum(1)
    depth_a = -(normal * torch.linalg.cross(ray_b, t)).sum(1) / length
    depth_b = -(normal * torch.linalg.cross(ray_a, t)).sum(1) / length
    return depth_a, depth_b


def _homogeneous(points: Float[Tensor, "N 2"]) -> Float[Tensor, "N 3"]:
    return torch.cat((points, torch.ones_like(points[:, :1])), 1)
