"""Rigid poses as 4 x 4 matrices: their inverse, how far they are apart, and the rotations nearest to measured ones.

World-to-camera, as `zoo.cameras` has them.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

ROTATION_TOLERANCE = 1e-2  # of max |R^T R - I|: real poses are off by some 4e-4, broken ones by far more


def invert_se3(M: Float[Tensor, "*batch 4 4"]) -> Float[Tensor, "*batch 4 4"]:
    """The inverse of rigid transforms in closed form: (R, t) -> (R^T, -R^T t)."""
    rotation, translation = M[..., :3, :3], M[..., :3, 3:]
    inverse = torch.zeros_like(M)
    inverse[..., :3, :3] = rotation.mT
    # products and sums, not a matrix product: autocast would take that to half precision
    inverse[..., :3, 3] = -(rotation * translation).sum(-2)
    inverse[..., 3, 3] = 1.0
    return inverse


def pose_distance(
    world_to_camera_a: Float[Tensor, "*#batch 4 4"], world_to_camera_b: Float[Tensor, "*#batch 4 4"]
) -> tuple[Float[Tensor, "*batch"], Float[Tensor, "*batch"]]:
    """How far poses are apart, with broadcasting.

    Returns:
        The angle of the relative rotation in radians, 0 to pi, by atan2: the usual acos of the trace loses
        half of the digits near 0 and pi. And the distance of the camera centers, in the poses' unit.
    """
    # not a matrix product, which autocast would take to half precision
    relative = (world_to_camera_a[..., :3, None, :3] * world_to_camera_b[..., None, :3, :3]).sum(-1)
    skew = relative - relative.mT
    sine = torch.stack((skew[..., 2, 1], skew[..., 0, 2], skew[..., 1, 0]), -1).norm(dim=-1) / 2
    cosine = (relative.diagonal(dim1=-2, dim2=-1).sum(-1) - 1) / 2
    center_a, center_b = invert_se3(world_to_camera_a)[..., :3, 3], invert_se3(world_to_camera_b)[..., :3, 3]
    return torch.atan2(sine, cosine), (center_a - center_b).norm(dim=-1)


def nearest_rotation(
    R: Float[Tensor, "*batch 3 3"], what: str = "poses", each: str = "pose"
) -> Float[Tensor, "*batch 3 3"]:
    """The rotations nearest to nearly orthonormal matrices (in the Frobenius norm, by SVD).

    Args:
        R: matrices with max |R^T R - I| <= 1e-2.
        what: what they belong to, for the error: the name of a file, for example.
        each: what one of them is called there.

    Raises:
        ValueError: naming `what` and the first matrix that is not finite, further off, or a reflection.
    """
    wide = R.double()
    flat = wide.reshape(-1, 3, 3)
    finite = flat.isfinite().flatten(1).all(1)
    gram = flat.mT @ flat
    deviation = (gram - torch.eye(3, dtype=gram.dtype, device=gram.device)).abs().amax((-1, -2))
    bad = ~finite | (deviation > ROTATION_TOLERANCE) | (torch.linalg.det(flat) < 0)
    if bad.any():
        first = int(bad.nonzero()[0])
        if not finite[first]:
            reason = "holds NaN or infinite numbers"
        elif deviation[first] > ROTATION_TOLERANCE:
            off = float(deviation[first])
            reason = f"is off orthonormal by {off:.2g}, more than {ROTATION_TOLERANCE:g}: is it a rotation?"
        else:
            reason = "is a reflection (its determinant is -1): check the axes"
        raise ValueError(f"{what}: {each} {first}: the rotation {reason}")
    U, _, Vh = torch.linalg.svd(wide)
    return (U @ Vh).to(R.dtype)
