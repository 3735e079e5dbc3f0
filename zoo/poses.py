"""Rigid poses as 4 x 4 matrices: inverse, distance, and projection to SO(3).

Poses are world-to-camera, as defined in `zoo.cameras`.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

ROTATION_TOLERANCE = 1e-2  # bound on max |R^T R - I|: recorded poses reach 4e-4, broken ones far more


def invert_se3(M: Float[Tensor, "*batch 4 4"]) -> Float[Tensor, "*batch 4 4"]:
    """Inverts rigid transforms in closed form: (R, t) -> (R^T, -R^T t).

    Example:
        >>> import torch
        >>> pose = torch.eye(4)
        >>> pose[0, 3] = 2.0
        >>> invert_se3(pose)[0, 3].item()
        -2.0
    """
    rotation, translation = M[..., :3, :3], M[..., :3, 3:]
    inverse = torch.zeros_like(M)
    inverse[..., :3, :3] = rotation.mT
    # products and sums instead of a matrix product, which autocast would round to half precision
    inverse[..., :3, 3] = -(rotation * translation).sum(-2)
    inverse[..., 3, 3] = 1.0
    return inverse


def pose_distance(
    world_to_camera_a: Float[Tensor, "*#batch 4 4"], world_to_camera_b: Float[Tensor, "*#batch 4 4"]
) -> tuple[Float[Tensor, "*batch"], Float[Tensor, "*batch"]]:
    """Computes the angle and the distance between two poses, with broadcasting.

    Returns:
        The angle of the relative rotation in radians, 0 to pi, and the distance of the camera centers in the unit of
        the poses. The angle is computed by atan2: acos of the trace loses half of the digits near 0 and pi.

    Example:
        >>> import torch
        >>> a, b = torch.eye(4), torch.eye(4)
        >>> b[:3, :3] = torch.tensor([[0.0, -1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]])  # 90 degrees about z
        >>> b[0, 3] = 2.0
        >>> [round(x.item(), 4) for x in pose_distance(a, b)]
        [1.5708, 2.0]
    """
    # products and sums instead of a matrix product, which autocast would round to half precision
    relative = (world_to_camera_a[..., :3, None, :3] * world_to_camera_b[..., None, :3, :3]).sum(-1)
    cosine, sine_axis = rotation_parts(relative)
    center_a, center_b = invert_se3(world_to_camera_a)[..., :3, 3], invert_se3(world_to_camera_b)[..., :3, 3]
    return torch.atan2(sine_axis.norm(dim=-1), cosine), (center_a - center_b).norm(dim=-1)


def rotation_parts(R: Float[Tensor, "*batch 3 3"]) -> tuple[Float[Tensor, "*batch"], Float[Tensor, "*batch 3"]]:
    """Returns cos(angle) and sin(angle) * axis of rotations."""
    skew = R - R.mT
    sine_axis = torch.stack((skew[..., 2, 1], skew[..., 0, 2], skew[..., 1, 0]), -1) / 2
    return (R.diagonal(dim1=-2, dim2=-1).sum(-1) - 1) / 2, sine_axis


def nearest_rotation(
    R: Float[Tensor, "*batch 3 3"], source: str = "poses", item: str = "pose"
) -> Float[Tensor, "*batch 3 3"]:
    """Projects nearly orthonormal matrices to SO(3), in the Frobenius norm, by SVD.

    Args:
        R: matrices with max |R^T R - I| <= 1e-2.
        source: name of their source for the error, such as a file name.
        item: name of one matrix for the error.

    Raises:
        ValueError: a matrix is not finite, farther from orthonormal, or a reflection. Names the first one.
    """
    matrices = R.double()
    flat = matrices.reshape(-1, 3, 3)
    finite = flat.isfinite().flatten(1).all(1)
    gram = flat.mT @ flat
    deviation = (gram - torch.eye(3, dtype=gram.dtype, device=gram.device)).abs().amax((-1, -2))
    bad = ~finite | (deviation > ROTATION_TOLERANCE) | (torch.linalg.det(flat) < 0)
    if bad.any():
        first = int(bad.nonzero()[0])
        if not finite[first]:
            reason = "contains NaN or infinite values"
        elif deviation[first] > ROTATION_TOLERANCE:
            off = float(deviation[first])
            reason = f"is off orthonormal by {off:.2g}, more than {ROTATION_TOLERANCE:g}: is it a rotation?"
        else:
            reason = "is a reflection (its determinant is -1): check the axes"
        raise ValueError(f"{source}: {item} {first}: the rotation {reason}")
    U, _, Vh = torch.linalg.svd(matrices)
    return (U @ Vh).to(R.dtype)
