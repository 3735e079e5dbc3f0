"""PRoPE: cameras as relative positions, arXiv 2507.10496 ("Cameras as Relative Positional Encoding")."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from zoo.cameras import Cameras, invert_se3
from zoo.encodings.base import CameraEncoding, CameraMatrices
from zoo.encodings.placements import Fraction, Placement


def projection_matrices(
    world_to_camera: Float[Tensor, "*batch 4 4"], K_normalised: Float[Tensor, "*batch 3 3"] | None = None
) -> tuple[Float[Tensor, "*batch 4 4"], Float[Tensor, "*batch 4 4"]]:
    """P = lift(K) V and P^-1 = V^-1 lift(K)^-1, both in closed form; without K, P is V (the rule of GTA).

    lift(K) is the 4 x 4 identity with K, which has no skew, in its upper left corner.
    """
    V, V_inverse = world_to_camera, invert_se3(world_to_camera)
    if K_normalised is None:
        return V, V_inverse
    fx, fy = K_normalised[..., 0, 0], K_normalised[..., 1, 1]
    cx, cy = K_normalised[..., 0, 2], K_normalised[..., 1, 2]
    return _lift(fx, fy, cx, cy) @ V, V_inverse @ _lift(1 / fx, 1 / fy, -cx / fx, -cy / fy)


def _lift(fx: Tensor, fy: Tensor, cx: Tensor, cy: Tensor) -> Float[Tensor, "*batch 4 4"]:
    one, zero = torch.ones_like(fx), torch.zeros_like(fx)
    rows = (fx, zero, cx, zero), (zero, fy, cy, zero), (zero, zero, one, zero), (zero, zero, zero, one)
    return torch.stack([torch.stack(row, -1) for row in rows], -2)


class PRoPE(CameraEncoding):
    """q' = P^T q, k' = P^-1 k, v' = P^-1 v, o' = P o with P = lift(K) V, on groups of four channels a head.

    What two views see of each other depends on P_i P_j^-1 alone: a common change of world V -> V G cancels.
    Text has no camera (P = I), that is, it sits in the world's frame: only canonical cameras make that exact.

    Args:
        placement: the channels; None is `Fraction(0, 0.5)`, the first half of a head.
        reference: `first` puts the world into the first view of a sample, None keeps the data's world.
    """

    def __init__(self, placement: Placement | None = None, reference: Literal["first"] | None = "first") -> None:
        super().__init__()
        self.placement = placement or Fraction(0.0, 0.5)
        self.reference = reference

    @property
    def needs_constant_time(self) -> bool:
        return self.placement.needs_constant_time

    def encode(
        self,
        cameras: Cameras,
        *,
        head_dim: int,
        mrope_section: Sequence[int],
        dtype: torch.dtype = torch.float32,
    ) -> CameraMatrices:
        """See `CameraEncoding.encode`."""
        index = cameras.index
        if index is None:
            raise ValueError("these cameras say nothing of the tokens: give Cameras an index (B, L)")
        block = self.placement.block(head_dim, mrope_section)
        if self.reference is not None:
            cameras = cameras.canonical(self.reference)
        P, P_inverse = projection_matrices(cameras.world_to_camera.double(), cameras.K_normalised.double())
        dtype = torch.promote_types(dtype, torch.float32)
        P, inverse_T = P.to(dtype), P_inverse.mT.to(dtype)  # of row vectors: x' = M x is x M^T
        in_rope_frame = not self.placement.before_rope
        return CameraMatrices(index, block, in_rope_frame, q=P, k=inverse_T, v=inverse_T, o=P.mT)
