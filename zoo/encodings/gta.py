"""GTA: the pose alone as relative position, arXiv 2310.10375 ("Geometric Transform Attention")."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

from zoo.cameras import Cameras
from zoo.encodings.matrices import ApplyTo, Matrices, MatrixEncoding, PoseComponent
from zoo.encodings.placements import Placement
from zoo.encodings.prope import projection_matrices
from zoo.errors import InputError


class GTA(MatrixEncoding):
    """PRoPE without intrinsics: P = V, with translations times a factor s, which may be learned.

    The factor conjugates V by diag(s, s, s, 1): what is invariant stays so.

    Args:
        placement, apply_to, pose_component, world: see `PRoPE`.
        translation_scale: s; the unit of translations is a meter before it, unless `scale` says otherwise.
        learn_scale: learn log s, one number for all layers, from there on.
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
                f"translation_scale must be positive, not {translation_scale}: pose_component=rotation has none"
            )
        if learn_scale and pose_component == "rotation":
            raise InputError("learn_scale has nothing to learn: pose_component=rotation leaves translations out")
        self.translation_scale = translation_scale
        self.log_scale = nn.Parameter(torch.tensor(math.log(translation_scale))) if learn_scale else None

    def matrices(self, cameras: Cameras) -> Matrices:
        scale = self.translation_scale if self.log_scale is None else self.log_scale.double().exp()
        poses = cameras.world_to_camera.clone()
        poses[..., :3, 3] = cameras.world_to_camera[..., :3, 3] * scale
        V, V_inverse = projection_matrices(poses)
        return Matrices(q=V.mT, k=V_inverse, v=V_inverse, o=V)
