"""PRoPE: cameras as relative positions, arXiv 2507.10496 ("Cameras as Relative Positional Encoding")."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from zoo.cameras import Cameras
from zoo.encodings.matrices import Matrices, MatrixEncoding
from zoo.poses import invert_se3


def projection_matrices(
    world_to_camera: Float[Tensor, "*batch 4 4"], K_normalized: Float[Tensor, "*batch 3 3"] | None = None
) -> tuple[Float[Tensor, "*batch 4 4"], Float[Tensor, "*batch 4 4"]]:
    """P = lift(K) V and P^-1 = V^-1 lift(K)^-1, both in closed form; without K, P is V (the rule of GTA).

    lift(K) is the 4 x 4 identity with K, which has no skew, in its upper left corner.
    """
    V, V_inverse = world_to_camera, invert_se3(world_to_camera)
    if K_normalized is None:
        return V, V_inverse
    fx, fy = K_normalized[..., 0, 0], K_normalized[..., 1, 1]
    cx, cy = K_normalized[..., 0, 2], K_normalized[..., 1, 2]
    return _lift(fx, fy, cx, cy) @ V, V_inverse @ _lift(1 / fx, 1 / fy, -cx / fx, -cy / fy)


def _lift(fx: Tensor, fy: Tensor, cx: Tensor, cy: Tensor) -> Float[Tensor, "*batch 4 4"]:
    one, zero = torch.ones_like(fx), torch.zeros_like(fx)
    rows = (fx, zero, cx, zero), (zero, fy, cy, zero), (zero, zero, one, zero), (zero, zero, zero, one)
    return torch.stack([torch.stack(row, -1) for row in rows], -2)


class PRoPE(MatrixEncoding):
    """q' = P^T q, k' = P^-1 k, v' = P^-1 v, o' = P o with P = lift(K) V, on groups of four channels a head.

    What two views see of each other depends on P_i P_j^-1 alone: a common change of world V -> V G cancels.
    Text has no camera (P = I), that is, it sits in the world's frame: only canonical cameras make that exact.
    """

    uses_intrinsics = True

    def matrices(self, cameras: Cameras) -> Matrices:
        P, P_inverse = projection_matrices(cameras.world_to_camera, cameras.K_normalized)
        return Matrices(q=P.mT, k=P_inverse, v=P_inverse, o=P)
