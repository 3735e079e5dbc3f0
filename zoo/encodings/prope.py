"""PRoPE and related encodings: one 4 x 4 matrix per camera acts on queries, keys, values and outputs."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Collection
from dataclasses import replace
from itertools import product
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from zoo.cameras import Cameras
from zoo.cameras.poses import invert_se3, rigid_matrix
from zoo.cameras.rays import ray_directions
from zoo.encodings.base import (
    CameraEncoding,
    DecoderLayout,
    EncodedCameras,
    HeadLayout,
    Symmetries,
)
from zoo.encodings.placements import (
    ChannelRange,
    Matrices,
    Placement,
)
from zoo.errors import InputError, check_choice
from zoo.values import check_shape

# ---- Base class of matrix encodings ----------------------------------------------------------------------------------

ApplyTo = Literal["qkvo", "qk", "vo"]
PoseComponent = Literal["both", "rotation", "translation"]


class MatrixEncoding(CameraEncoding):
    """Base class of encodings by one 4 x 4 matrix per camera. A subclass defines it, a placement picks the channels.

    Args:
        placement: The channels; None is `ChannelRange(0, 0.5)`, the first half of a head.
        apply_to: Queries and keys, values and outputs, or both.
        pose_component: The part of the poses that is used. Translations alone are not a group, so a change of world
            then has an effect.
        world: `reference` and `scale`, see `CameraEncoding`.

    Attributes:
        uses_intrinsics: Whether the matrices depend on the intrinsics.
        keeps_rotations: Whether poses without translations give orthogonal matrices, see `DeltaNetLayers`.
    """

    uses_intrinsics: bool = False
    keeps_rotations: bool = False

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
        """Compute the matrices in float64, for column vectors of four channels: q' = M_q q and so on.

        `symmetries` assumes that M_q^T M_k and M_o M_v between two views depend only on V_i V_j^-1, and that identity
        cameras give identity matrices. Override it otherwise.

        Args:
            cameras: Canonical cameras with the `pose_component` of their poses.

        Returns:
            The matrices of all terms. Terms that are not in `apply_to` are ignored.
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

    @property
    def is_orthogonal(self) -> bool:
        return "qk" not in self.apply_to or (self.pose_component == "rotation" and self.keeps_rotations)

    def touched_channels(self, head: HeadLayout) -> set[tuple[str, int]]:
        return set(product(self.apply_to, self.placement.head_channels(head)))

    def bind_to_decoder(self, decoder: DecoderLayout, layers: Collection[int]) -> None:
        self.placement.bind_to_decoder(decoder, layers)

    def encode_canonical(self, cameras: Cameras, head: HeadLayout, dtype: torch.dtype) -> EncodedCameras:
        return self.placement.place(cameras, self.row_matrices(cameras, dtype), head)

    def row_matrices(self, cameras: Cameras, dtype: torch.dtype) -> Matrices:
        """Compute the active matrices for row vectors, as a placement takes them: M x is x^T M^T for the row x^T."""
        return {term: m.mT.to(dtype) for term, m in self.active_matrices(cameras).items()}

    def active_matrices(self, cameras: Cameras) -> Matrices:
        """Compute the matrices of `apply_to` and `pose_component` from canonical cameras, see `matrices`."""
        if self.pose_component != "both":
            columns = slice(0, 3) if self.pose_component == "rotation" else slice(3, 4)
            poses = torch.eye(4, dtype=torch.float64, device=cameras.world_to_camera.device)
            poses = poses.expand_as(cameras.world_to_camera).clone()
            poses[..., :3, columns] = cameras.world_to_camera[..., :3, columns]
            cameras = cameras.with_poses(poses)
        matrices = {term: m for term, m in self.matrices(cameras).items() if term in self.apply_to}
        for term, m in matrices.items():
            check_shape(self, f"matrices of {term} (B, C, 4, 4)", m, *cameras.world_to_camera.shape)
        return matrices


# ---- PRoPE (arXiv 2507.10496): intrinsics and pose -------------------------------------------------------------------


def projection_matrices(
    world_to_camera: Float[Tensor, "*batch 4 4"], K_normalized: Float[Tensor, "*batch 3 3"] | None = None
) -> tuple[Float[Tensor, "*batch 4 4"], Float[Tensor, "*batch 4 4"]]:
    """Compute P = lift(K) V and P^-1 = V^-1 lift(K)^-1 in closed form. Without K, P = V (GTA).

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
    on groups of four channels. Attention between two views depends only on P_i P_j^-1, so it is invariant to a change
    of world V -> V G. Text has no camera (P = I), so it sees the world frame. With text the invariance needs a
    reference view.

    Example:
        >>> import torch
        >>> from zoo import Cameras, PRoPE, TemporalSection
        >>> from zoo.encodings.base import HeadLayout
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


# ---- GTA (arXiv 2310.10375): the pose --------------------------------------------------------------------------------


class GTA(MatrixEncoding):
    """GTA (arXiv 2310.10375): q' = V^T q, k' = V^-1 k, v' = V^-1 v, o' = V o. This is PRoPE without intrinsics.

    Translations are multiplied by a factor s, fixed or learned. This conjugates V by diag(s, s, s, 1), which keeps the
    symmetries.

    Args:
        placement: The channels; None is `ChannelRange(0, 0.5)`, the first half of a head.
        apply_to: Queries and keys, values and outputs, or both.
        pose_component: The part of the poses that is used. Translations alone are not a group, so a change of world
            then has an effect.
        translation_scale: The factor s. Translations are in meters, unless `scale` is set.
        learn_scale: Learn log s, one parameter for all layers, starting from `translation_scale`.
        world: `reference` and `scale`, see `CameraEncoding`.

    Example:
        >>> import torch
        >>> from zoo import Cameras, GTA
        >>> from zoo.encodings.base import HeadLayout
        >>> cameras = Cameras(torch.eye(4).repeat(1, 2, 1, 1), torch.eye(3).repeat(1, 2, 1, 1), torch.tensor([[0, 1]]))
        >>> encoded = GTA(learn_scale=True).encode(cameras, HeadLayout.in_row(16, (4, 2, 2)))
        >>> v = torch.randn(1, 2, 2, 16)
        >>> torch.equal(encoded.transform_values(v), v)  # identity cameras give the original attention
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
        # one-dimensional, because a scalar can't be sharded
        self.log_scale = nn.Parameter(torch.tensor([math.log(translation_scale)])) if learn_scale else None

    def matrices(self, cameras: Cameras) -> Matrices:
        scale = self.translation_scale if self.log_scale is None else self.log_scale.double().exp()
        poses = cameras.world_to_camera.clone()
        poses[..., :3, 3] = cameras.world_to_camera[..., :3, 3] * scale
        V, V_inverse = projection_matrices(poses)
        return {"q": V.mT, "k": V_inverse, "v": V_inverse, "o": V}


# ---- CaPE (arXiv 2402.03908): the pose, on queries and keys ----------------------------------------------------------


class CaPE(MatrixEncoding):
    """CaPE (arXiv 2402.03908): q' = V^-1 q, k' = V^T k with world-to-camera poses V. Queries and keys only.

    The logit is q^T (V_j V_i^-1)^T k, invariant to a change of world V -> V G. With camera-to-world poses it would not
    be.

    Args:
        placement: The channels; None is `ChannelRange(0, 0.5)`.
        world: `reference` and `scale`, see `CameraEncoding`.

    Example:
        >>> import torch
        >>> from zoo import Cameras, CaPE
        >>> from zoo.encodings.base import HeadLayout
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


# ---- Rays (after UCPE, arXiv 2512.07237): GTA with a frame per token along its ray -----------------------------------


class RayEncoding(GTA):
    """GTA with one frame per token, V = [R_ray 0; 0 1] V_camera: at the camera center, with z along the token's ray.

    This is the relative ray encoding of UCPE (arXiv 2512.07237). x is the camera's y axis (down) cross z, and y is z
    cross x, so the frame of the central ray is the camera's own. Attention between two tokens depends on the rigid
    transform from ray to ray, and therefore also on their places in the views and on the intrinsics. UCPE's absolute
    orientation map (pitch and roll), its adapter beside the attention, and lenses other than pinholes are not included.
    Arguments as in `GTA`.
    """

    uses_intrinsics = True

    @property
    def symmetries(self) -> Symmetries:
        gta = super().symmetries
        # identity cameras still have different rays
        return replace(gta, identity_stock=gta.identity_stock and self.pose_component == "translation")

    def canonical(self, cameras: Cameras) -> Cameras:
        """Return one canonical camera per token, see `ray_cameras`."""
        return ray_cameras(super().canonical(cameras))


def ray_cameras(cameras: Cameras) -> Cameras:
    """Replace the camera of each token by one at the same center whose z axis is the token's ray.

    Raises:
        ValueError: The cameras lack an index or patch centers.
    """
    index, patch_centers = cameras.required("index"), cameras.required("patch_centers")
    sample = torch.arange(len(cameras), device=index.device)[:, None]
    camera = index.clamp(min=0)
    K = cameras.K_normalized[sample, camera]
    # a token without a camera may read invalid intrinsics
    K = torch.where((index >= 0)[..., None, None], K, torch.eye(3, dtype=K.dtype, device=K.device))
    z = ray_directions(K, patch_centers)
    z = z / z.norm(dim=-1, keepdim=True)
    x = torch.stack((z[..., 2], torch.zeros_like(z[..., 0]), -z[..., 0]), -1)  # the camera's y axis cross z
    x = x / x.norm(dim=-1, keepdim=True)
    camera_to_ray = rigid_matrix(torch.stack((x, torch.linalg.cross(z, x), z), -2), torch.zeros_like(z))
    intrinsics = torch.eye(3, dtype=z.dtype, device=z.device).expand(*z.shape[:2], 3, 3)
    token = torch.arange(z.shape[1], device=z.device).where(index >= 0, -1)
    runs = None if cameras.token_runs is None else cameras.token_runs.with_one_camera_per_token()
    return Cameras.trusted(camera_to_ray @ cameras.world_to_camera[sample, camera], intrinsics, token, runs)
