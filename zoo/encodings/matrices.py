"""Encodings by one 4 x 4 matrix per camera, on queries, keys, values and outputs."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Collection
from itertools import product
from typing import Any, Literal

import torch

from zoo.cameras import Cameras
from zoo.encodings.base import CameraEncoding, EncodedCameras, Symmetries
from zoo.encodings.decoder_layout import DecoderLayout, HeadLayout
from zoo.encodings.placements import ChannelRange, Matrices, Placement
from zoo.errors import check_choice
from zoo.values import check_shape

ApplyTo = Literal["qkvo", "qk", "vo"]
PoseComponent = Literal["both", "rotation", "translation"]


class MatrixEncoding(CameraEncoding):
    """Base class of encodings by one 4 x 4 matrix per camera: subclasses define it, a placement picks the channels.

    Args:
        placement: The channels; None is `ChannelRange(0, 0.5)`, the first half of a head.
        apply_to: Queries and keys, values and outputs, or both.
        pose_component: Used part of the poses. Translations alone are not a group: a change of world is then visible.
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
        """Compute the matrices for column vectors of four channels, q' = M_q q and so on, in float64.

        `symmetries` assumes that M_q^T M_k and M_o M_v between two views depend on V_i V_j^-1 alone, and that identity
        cameras give identity matrices: override it otherwise.

        Args:
            cameras: Canonical cameras with the `pose_component` of their poses.

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

    @property
    def is_orthogonal(self) -> bool:
        return "qk" not in self.apply_to or (self.pose_component == "rotation" and self.keeps_rotations)

    def touched_channels(self, head: HeadLayout) -> set[tuple[str, int]]:
        return set(product(self.apply_to, self.placement.head_channels(head)))

    def bind_to_decoder(self, decoder: DecoderLayout, layers: Collection[int]) -> None:
        self.placement.bind_to_decoder(decoder, layers)

    def encode_canonical(self, cameras: Cameras, head: HeadLayout, dtype: torch.dtype) -> EncodedCameras:
        # M x for a column vector is x^T M^T for a row vector
        rows = {term: m.mT.to(dtype) for term, m in self.active_matrices(cameras).items()}
        return self.placement.place(cameras, rows, head)

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
