"""GTA, the geometric transform attention (arXiv 2310.10375): poses as relative positions."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

from zoo.cameras import Cameras
from zoo.encodings.matrices import ApplyTo, MatrixEncoding, PoseComponent
from zoo.encodings.placements import Matrices, Placement
from zoo.encodings.prope import projection_matrices
from zoo.errors import InputError


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
