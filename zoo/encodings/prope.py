"""PRoPE, "Cameras as Relative Positional Encoding" (arXiv 2507.10496)."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from zoo.cameras import Cameras
from zoo.cameras.poses import invert_se3
from zoo.encodings.matrices import MatrixEncoding
from zoo.encodings.placements import Matrices


def projection_matrices(
    world_to_camera: Float[Tensor, "*batch 4 4"], K_normalized: Float[Tensor, "*batch 3 3"] | None = None
) -> tuple[Float[Tensor, "*batch 4 4"], Float[Tensor, "*batch 4 4"]]:
    """Compute P = lift(K) V and P^-1 = V^-1 lift(K)^-1 in closed form; without K, P = V (GTA).

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
    """PRoPE (arXiv 2507.10496): q' = P^T q, k' = P^-1 k, v' = P^-1 v, o' = P o with P = lift(K) V.

    V is the 4 x 4 world-to-camera pose, and lift(K) the identity with the intrinsics K in its upper left corner. P acts
    on groups of four channels. Attention between two views depends on P_i P_j^-1 alone, so it is invariant to a change
    of world V -> V G. Text has no camera (P = I), that is, it sees the world frame: invariant only with a reference
    view.

    Example:
        >>> import torch
        >>> from zoo import Cameras, PRoPE, TemporalSection
        >>> from zoo.encodings.decoder_layout import HeadLayout
        >>> poses = torch.eye(4).repeat(1, 2, 1, 1)
        >>> poses[:, 1, 0, 3] = 0.5
        >>> index = torch.tensor([[-1, 0, 1, -1]])  # text, a token of each view, text
        >>> cameras = Cameras(poses, torch.eye(3).repeat(1, 2, 1, 1), index)
        >>> encoded = PRoPE(TemporalSection()).encode(cameras, HeadLayout.in_row(128, (16, 24, 24)))
        >>> q, k = torch.randn(1, 4, 16, 128), torch.randn(1, 4, 2, 128)
        >>> transformed, _ = encoded.before_rope(q, k)
        >>> (transformed != q).any(-1).any(-1).tolist()  # the first view is the reference
        [[False, False, True, False]]
    """

    uses_intrinsics = True

    def matrices(self, cameras: Cameras) -> Matrices:
        P, P_inverse = projection_matrices(cameras.world_to_camera, cameras.K_normalized)
        return {"q": P.mT, "k": P_inverse, "v": P_inverse, "o": P}
