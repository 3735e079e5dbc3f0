"""A 4 x 4 matrix a token, on queries, keys, values and outputs: what most camera encodings come down to."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Collection, Sequence
from itertools import product
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import Qwen2_5_VLTextModel

from zoo.cameras import Cameras
from zoo.encodings.base import CameraEncoding, EncodedCameras
from zoo.encodings.placements import ChannelRange, Placement
from zoo.encodings.symmetries import Symmetries
from zoo.errors import check_choice


class Matrices(NamedTuple):
    """What each camera does to column vectors of four channels: q' = M q, and so on; None leaves a term alone."""

    q: Float[Tensor, "B C 4 4"] | None = None
    k: Float[Tensor, "B C 4 4"] | None = None
    v: Float[Tensor, "B C 4 4"] | None = None
    o: Float[Tensor, "B C 4 4"] | None = None


ApplyTo = Literal["qkvo", "qk", "vo"]
PoseComponent = Literal["both", "rotation", "translation"]


class MatrixEncoding(CameraEncoding):
    """Encodings by a 4 x 4 matrix a camera: subclasses say which, a placement says where.

    Args:
        placement: the channels; None is `ChannelRange(0, 0.5)`, the first half of a head.
        apply_to: queries and keys, values and outputs, or both.
        pose_component: of the pose. A translation alone is no group action: even a change of world shows then.
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
        """What a camera does to column vectors of four channels, q' = M_q q and so on; float64.

        `symmetries` takes it that M_q^T M_k and M_o M_v between two views depend on V_i V_j^-1 alone, and that identity
        cameras give identities: override it where that isn't so.

        Args:
            cameras: seen from the reference view, in the unit of `scale`, with `pose_component` of their poses. A term
            that
                isn't of `apply_to` is left out afterwards.
        """

    @property
    def requires_constant_time(self) -> bool:
        return self.placement.requires_constant_time and "qk" in self.apply_to

    @property
    def symmetries(self) -> Symmetries:
        place, relative, beside_rope = self.placement, self.pose_component != "translation", "qk" in self.apply_to
        keeps_world = relative and (place.keeps_world or not beside_rope)  # RoPE leaves values and outputs alone
        return Symmetries(
            world_views=keeps_world,
            world_text=keeps_world and place.leaves_text,
            canonical=self.reference is not None or (relative and place.leaves_text),
            scale=self.scale != "none" or self.pose_component == "rotation",
            shift=place.keeps_shift or not beside_rope,
            intrinsics=not self.uses_intrinsics,
            identity_stock=place.keeps_stock and place.keeps_rope,
            text_stock=place.keeps_rope,
        )

    def touched_channels(self, head_dim: int, mrope_section: Sequence[int]) -> set[tuple[str, int]]:
        """See `CameraEncoding.touched_channels`."""
        return set(product(self.apply_to, self.placement.head_channels(head_dim, mrope_section)))

    def bind_to_decoder(self, language_model: Qwen2_5_VLTextModel, layers: Collection[int]) -> None:
        self.placement.bind_to_decoder(language_model, layers)

    def encode(
        self,
        cameras: Cameras,
        *,
        head_dim: int,
        mrope_section: Sequence[int],
        dtype: torch.dtype = torch.float32,
    ) -> EncodedCameras:
        """See `CameraEncoding.encode`."""
        cameras = self.canonical(cameras)
        dtype = torch.promote_types(dtype, torch.float32)
        # of row vectors: x' = M x is x M^T
        rows = {name: m.mT.to(dtype) for name, m in self.active_matrices(cameras)._asdict().items() if m is not None}
        assert cameras.index is not None
        return self.placement.place(cameras.index, rows, head_dim, mrope_section)

    def active_matrices(self, cameras: Cameras) -> Matrices:
        """The matrices of `pose_component` and `apply_to`, of cameras that `canonical` made."""
        if self.pose_component != "both":
            part = slice(0, 3) if self.pose_component == "rotation" else slice(3, 4)
            poses = torch.eye(4, dtype=torch.float64, device=cameras.world_to_camera.device)
            poses = poses.expand_as(cameras.world_to_camera).clone()
            poses[..., :3, part] = cameras.world_to_camera[..., :3, part]
            cameras = cameras.with_poses(poses)
        given = self.matrices(cameras)._asdict()
        return Matrices(**{name: m for name, m in given.items() if name in self.apply_to})
