"""PRoPE: cameras as relative positions, arXiv 2507.10496 ("Cameras as Relative Positional Encoding")."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from zoo.cameras import Cameras, invert_se3, normalise_intrinsics
from zoo.encodings.base import CameraEncoding, CameraMatrices, Fraction, Placement

ROPE_BASE = 100.0  # of the published layout's image axes


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
    lift = torch.eye(4, dtype=V.dtype, device=V.device).repeat(*V.shape[:-2], 1, 1)
    lift_inverse = lift.clone()
    lift[..., :2, 2] = torch.stack((cx, cy), -1)
    lift[..., 0, 0], lift[..., 1, 1] = fx, fy
    lift_inverse[..., :2, 2] = torch.stack((-cx / fx, -cy / fy), -1)
    lift_inverse[..., 0, 0], lift_inverse[..., 1, 1] = 1 / fx, 1 / fy
    return lift @ V, V_inverse @ lift_inverse


class PRoPE(CameraEncoding):
    """q' = P^T q, k' = P^-1 k, v' = P^-1 v, o' = P o with P = lift(K) V, on groups of four channels of each head.

    What two views see of each other depends on P_i P_j^-1 alone: a common change of world V -> V G cancels. Text has
    no camera (P = I), which is to say that it sits in the world's frame: only canonical cameras make that exact too.

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
        if cameras.index is None:
            raise ValueError("these cameras say nothing of the tokens: give Cameras an index (B, L)")
        block = self.placement.blocks(head_dim, mrope_section)
        wide = cameras.to(dtype=torch.float64)
        if self.reference is not None:
            wide = wide.canonical(self.reference)
        with torch.autocast(wide.world_to_camera.device.type, enabled=False):
            P, P_inverse = projection_matrices(wide.world_to_camera, wide.K_normalised)
        dtype = torch.promote_types(dtype, torch.float32)
        P, P_inverse = P.to(dtype), P_inverse.to(dtype)
        inverse_T = P_inverse.mT  # row vectors: x' = M x is x M^T
        return CameraMatrices(
            cameras.index, block, self.placement.before_rope, q=P, k=inverse_T, v=inverse_T, o=P.mT
        )


def prope_attention(
    q: Float[Tensor, "B H N D"],
    k: Float[Tensor, "B H N D"],
    v: Float[Tensor, "B H N D"],
    world_to_camera: Float[Tensor, "B C 4 4"],
    K_px: Float[Tensor, "B C 3 3"] | None,
    *,
    patches_x: int,
    patches_y: int,
    image_width: float,
    image_height: float,
    is_causal: bool = False,
) -> Float[Tensor, "B H N D"]:
    """Multi-view attention in PRoPE's complete published layout (arXiv 2507.10496, section 3.2).

    Half of the channels of a head take the projective matrices, a quarter RoPE over patch columns x, a quarter over
    patch rows y (base 100, pairs (c, c + D/8)): on q, k and v, and inversely on the output.

    Args:
        q, k, v: tokens in the order camera, patch row, patch column: N = C * patches_y * patches_x.
        world_to_camera: rigid poses, OpenCV axes.
        K_px: intrinsics in pixels of the image, skew ignored; None leaves them out (the rule of GTA).
        patches_x, patches_y: patches a row, and rows.
        image_width, image_height: pixels.
        is_causal: mask out later tokens.

    Returns:
        The attention's output, in the dtype of q.

    Raises:
        ValueError: a head that isn't a multiple of 8 wide, or tokens that aren't C * patches_y * patches_x.
    """
    raise NotImplementedError
