"""Encodings by one 4 x 4 matrix per camera, on queries, keys, values and outputs: PRoPE, GTA and CaPE."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Collection
from itertools import product
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from zoo.cameras import Cameras
from zoo.decoder_layout import DecoderLayout, HeadLayout
from zoo.encodings.base import CameraEncoding
from zoo.encodings.encoded import EncodedCameras
from zoo.encodings.placements import ChannelRange, Matrices, Placement
from zoo.encodings.symmetries import Symmetries
from zoo.errors import InputError, check_choice
from zoo.poses import invert_se3

ApplyTo = Literal["qkvo", "qk", "vo"]
PoseComponent = Literal["both", "rotation", "translation"]


class MatrixEncoding(CameraEncoding):
    """Base class of encodings by one 4 x 4 matrix per camera: subclasses define it, a placement picks the channels.

    Args:
        placement: the channels; None is `ChannelRange(0, 0.5)`, the first half of a head.
        apply_to: queries and keys, values and outputs, or both.
        pose_component: used part of the poses. Translations alone are not a group: a change of world is then visible.
        world: `reference` and `scale`, see `CameraEncoding`.
    """

    uses_intrinsics: bool = False

    def __init__(
        self,
        placement: Placement | None = None,
        apply_to: ApplyTo = "qkvo",
        pose_component: PoseComponent = "both",
        **world: Any,
    ) -> None:
        super().__init__(**world)
        check_choice("apply_to", apply_to, ApplyTo)
        check_choice("pose_component", pose_component, PoseComponent)
        self.placement = placement or ChannelRange(0.0, 0.5)
        self.apply_to, self.pose_component = apply_to, pose_component

    @abstractmethod
    def matrices(self, cameras: Cameras) -> Matrices:
        """Computes the matrices for column vectors of four channels, q' = M_q q and so on, in float64.

        `symmetries` assumes that M_q^T M_k and M_o M_v between two views depend on V_i V_j^-1 alone, and that identity
        cameras give identity matrices: override it otherwise.

        Args:
            cameras: canonical cameras with the `pose_component` of their poses.

        Returns:
            The matrices of all terms; those not in `apply_to` are ignored.
        """

    @property
    def requires_constant_time(self) -> bool:
        return self.placement.requires_constant_time and "qk" in self.apply_to

    @property
    def symmetries(self) -> Symmetries:
        placement, relative = self.placement, self.pose_component != "translation"
        rotated = "qk" in self.apply_to  # RoPE acts on q and k only
        keeps_world = relative and (placement.keeps_world or not rotated)
        return Symmetries(
            world_views=keeps_world,
            world_text=keeps_world and placement.leaves_text,
            canonical=self.reference is not None or (relative and placement.leaves_text),
            scale=self.scale != "none" or self.pose_component == "rotation",
            shift=placement.keeps_shift or not rotated,
            intrinsics=not self.uses_intrinsics,
            identity_stock=placement.keeps_stock and placement.keeps_rope,
            text_stock=placement.keeps_rope,
        )

    def touched_channels(self, head: HeadLayout) -> set[tuple[str, int]]:
        return set(product(self.apply_to, self.placement.head_channels(head)))

    def bind_to_decoder(self, decoder: DecoderLayout, layers: Collection[int]) -> None:
        self.placement.bind_to_decoder(decoder, layers)

    def encode_canonical(self, cameras: Cameras, head: HeadLayout, dtype: torch.dtype) -> EncodedCameras:
        # M x for a column vector is x^T M^T for a row vector
        rows = {term: m.mT.to(dtype) for term, m in self.active_matrices(cameras).items()}
        assert cameras.index is not None
        return self.placement.place(cameras.index, rows, head)

    def active_matrices(self, cameras: Cameras) -> Matrices:
        """Computes the matrices of `apply_to` and `pose_component` from canonical cameras, see `matrices`."""
        if self.pose_component != "both":
            columns = slice(0, 3) if self.pose_component == "rotation" else slice(3, 4)
            poses = torch.eye(4, dtype=torch.float64, device=cameras.world_to_camera.device)
            poses = poses.expand_as(cameras.world_to_camera).clone()
            poses[..., :3, columns] = cameras.world_to_camera[..., :3, columns]
            cameras = cameras.with_poses(poses)
        return {term: m for term, m in self.matrices(cameras).items() if term in self.apply_to}


class PRoPE(MatrixEncoding):
    """PRoPE (arXiv 2507.10496): q' = P^T q, k' = P^-1 k, v' = P^-1 v, o' = P o with P = lift(K) V.

    P acts on groups of four channels. Attention between two views depends on P_i P_j^-1 alone, so it is invariant to
    a change of world V -> V G. Text has no camera (P = I), that is, it sees the world frame: invariant only with a
    reference view.

    Example:
        >>> import torch
        >>> from zoo import Cameras, PRoPE, TemporalSection
        >>> poses = torch.eye(4).repeat(1, 2, 1, 1)
        >>> poses[:, 1, 0, 3] = 0.5
        >>> index = torch.tensor([[-1, 0, 1, -1]])  # text, a token of each view, text
        >>> cameras = Cameras(poses, torch.eye(3).repeat(1, 2, 1, 1), index)
        >>> encoded = PRoPE(TemporalSection()).encode(cameras, head_dim=128, mrope_section=(16, 24, 24))
        >>> q, k = torch.randn(1, 4, 16, 128), torch.randn(1, 4, 2, 128)
        >>> transformed, _ = encoded.before_rope(q, k)
        >>> (transformed != q).any(-1).any(-1).tolist()  # the first view is the reference
        [[False, False, True, False]]
    """

    uses_intrinsics = True

    def matrices(self, cameras: Cameras) -> Matrices:
        P, P_inverse = projection_matrices(cameras.world_to_camera, cameras.K_normalized)
        return {"q": P.mT, "k": P_inverse, "v": P_inverse, "o": P}


class GTA(MatrixEncoding):
    """GTA (arXiv 2310.10375): q' = V^T q, k' = V^-1 k, v' = V^-1 v, o' = V o; PRoPE without intrinsics.

    Translations are multiplied by a factor s, fixed or learned. It conjugates V by diag(s, s, s, 1), which keeps the
    symmetries.

    Args:
        placement: the channels; None is `ChannelRange(0, 0.5)`, the first half of a head.
        apply_to: queries and keys, values and outputs, or both.
        pose_component: used part of the poses. Translations alone are not a group: a change of world is then visible.
        translation_scale: s; translations are in meters, unless `scale` is set.
        learn_scale: learn log s, one parameter for all layers, starting from `translation_scale`.
        world: `reference` and `scale`, see `CameraEncoding`.

    Example:
        >>> import torch
        >>> from zoo import Cameras, GTA
        >>> cameras = Cameras(torch.eye(4).repeat(1, 2, 1, 1), torch.eye(3).repeat(1, 2, 1, 1), torch.tensor([[0, 1]]))
        >>> encoded = GTA(learn_scale=True).encode(cameras, head_dim=16, mrope_section=(4, 2, 2))
        >>> v = torch.randn(1, 2, 2, 16)
        >>> torch.equal(encoded.transform_values(v), v)  # identity cameras give the stock attention
        True
    """

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
        if learn_scale and pose_component == "rotation":
            raise InputError("learn_scale has no effect with pose_component=rotation: leave one of them out")
        self.translation_scale = translation_scale
        self.log_scale = nn.Parameter(torch.tensor(math.log(translation_scale))) if learn_scale else None

    def matrices(self, cameras: Cameras) -> Matrices:
        scale = self.translation_scale if self.log_scale is None else self.log_scale.double().exp()
        poses = cameras.world_to_camera.clone()
        poses[..., :3, 3] = cameras.world_to_camera[..., :3, 3] * scale
        V, V_inverse = projection_matrices(poses)
        return {"q": V.mT, "k": V_inverse, "v": V_inverse, "o": V}


class CaPE(MatrixEncoding):
    """CaPE (arXiv 2402.03908): q' = V^-1 q, k' = V^T k with world-to-camera poses V; queries and keys only.

    The logit is q^T (V_j V_i^-1)^T k, invariant to a change of world V -> V G. With camera-to-world poses it is not.

    Args:
        placement: the channels; None is `ChannelRange(0, 0.5)`.
        world: `reference` and `scale`, see `CameraEncoding`.

    Example:
        >>> import torch
        >>> from zoo import Cameras, CaPE
        >>> cameras = Cameras(torch.eye(4).repeat(1, 2, 1, 1), torch.eye(3).repeat(1, 2, 1, 1), torch.tensor([[0, 1]]))
        >>> encoded = CaPE().encode(cameras, head_dim=16, mrope_section=(4, 2, 2))
        >>> v = torch.randn(1, 2, 2, 16)
        >>> encoded.transform_values(v) is v
        True
    """

    def __init__(self, placement: Placement | None = None, **world: Any) -> None:
        super().__init__(placement, apply_to="qk", **world)

    def matrices(self, cameras: Cameras) -> Matrices:
        V, V_inverse = projection_matrices(cameras.world_to_camera)
        return {"q": V_inverse, "k": V.mT}


def projection_matrices(
    world_to_camera: Float[Tensor, "*batch 4 4"], K_normalized: Float[Tensor, "*batch 3 3"] | None = None
) -> tuple[Float[Tensor, "*batch 4 4"], Float[Tensor, "*batch 4 4"]]:
    """Computes P = lift(K) V and P^-1 = V^-1 lift(K)^-1 in closed form; without K, P = V (GTA).

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
