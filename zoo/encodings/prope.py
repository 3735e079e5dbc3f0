"""PRoPE, "Cameras as Relative Positional Encoding" (arXiv 2507.10496)."""

from __future__ import annotations

import math
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from zoo.cameras import Cameras
from zoo.cameras.poses import invert_se3
from zoo.encodings.matrices import ApplyTo, MatrixEncoding, PoseComponent
from zoo.encodings.placements import Matrices, Placement
from zoo.errors import InputError


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


# ---- GTA, the geometric transform attention (arXiv 2310.10375): poses as relative positions -------------------------


class GTA(MatrixEncoding):
    """GTA (arXiv 2310.10375): q' = V^T q, k' = V^-1 k, v' = V^-1 v, o' = V o; PRoPE without intrinsics.

    Translations are multiplied by a factor s, fixed or learned. It conjugates V by diag(s, s, s, 1), which keeps the
    symmetries.

    Args:
        placement: The channels; None is `ChannelRange(0, 0.5)`, the first half of a head.
        apply_to: Queries and keys, values and outputs, or both.
        pose_component: Used part of the poses. Translations alone are not a group: a change of world is then visible.
        translation_scale: S; translations are in meters, unless `scale` is set.
        learn_scale: Learn log s, one parameter for all layers, starting from `translation_scale`.
        world: `reference` and `scale`, see `CameraEncoding`.

    Example:
        >>> import torch
        >>> from zoo import Cameras, GTA
        >>> from zoo.encodings.decoder_layout import HeadLayout
        >>> cameras = Cameras(torch.eye(4).repeat(1, 2, 1, 1), torch.eye(3).repeat(1, 2, 1, 1), torch.tensor([[0, 1]]))
        >>> encoded = GTA(learn_scale=True).encode(cameras, HeadLayout.in_row(16, (4, 2, 2)))
        >>> v = torch.randn(1, 2, 2, 16)
        >>> torch.equal(encoded.transform_values(v), v)  # identity cameras give the stock attention
        True
    """

    keeps_rotations = True

    def __init__(
        self,
        placement: Placement | None = None,
        apply_to: ApplyTo = "qkvo",
        pose_component: PoseComponent = "both",
        translation_scale: int | float = 1.0,
        learn_scale: bool = False,
        **world: Any,
    ) -> None:
        super().__init__(placement, apply_to, pose_component, **world)
        if not 0 < translation_scale < math.inf:
            raise InputError(
                f"translation_scale must be positive, got {translation_scale}: for rotations alone use "
                "pose_component=rotation"
            )
        for name, is_set in (("learn_scale", learn_scale), ("translation_scale", translation_scale != 1)):
            if is_set and pose_component == "rotation":
                raise InputError(f"{name} has no effect with pose_component=rotation: leave one of them out")
        self.translation_scale = translation_scale
        # one-dimensional, since a scalar can't be sharded
        self.log_scale = nn.Parameter(torch.tensor([math.log(translation_scale)])) if learn_scale else None

    def matrices(self, cameras: Cameras) -> Matrices:
        scale = self.translation_scale if self.log_scale is None else self.log_scale.double().exp()
        poses = cameras.world_to_camera.clone()
        poses[..., :3, 3] = cameras.world_to_camera[..., :3, 3] * scale
        V, V_inverse = projection_matrices(poses)
        return {"q": V.mT, "k": V_inverse, "v": V_inverse, "o": V}


# ---- CaPE, the camera positional encoding of EscherNet (arXiv 2402.03908), with six degrees of freedom --------------


class CaPE(MatrixEncoding):
    """CaPE (arXiv 2402.03908): q' = V^-1 q, k' = V^T k with world-to-camera poses V; queries and keys only.

    The logit is q^T (V_j V_i^-1)^T k, invariant to a change of world V -> V G. With camera-to-world poses it is not.

    Args:
        placement: The channels; None is `ChannelRange(0, 0.5)`.
        world: `reference` and `scale`, see `CameraEncoding`.

    Example:
        >>> import torch
        >>> from zoo import Cameras, CaPE
        >>> from zoo.encodings.decoder_layout import HeadLayout
        >>> cameras = Cameras(torch.eye(4).repeat(1, 2, 1, 1), torch.eye(3).repeat(1, 2, 1, 1), torch.tensor([[0, 1]]))
        >>> encoded = CaPE().encode(cameras, HeadLayout.in_row(16, (4, 2, 2)))
        >>> v = torch.randn(1, 2, 2, 16)
        >>> encoded.transform_values(v) is v
        True
    """

    keeps_rotations = True

    def __init__(self, placement: Placement | None = None, **world: Any) -> None:
        super().__init__(placement, apply_to="qk", **world)

    def matrices(self, cameras: Cameras) -> Matrices:
        V, V_inverse = projection_matrices(cameras.world_to_camera)
        return {"q": V_inverse, "k": V.mT}
