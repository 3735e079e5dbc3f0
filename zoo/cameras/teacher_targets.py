"""What a frozen teacher says of the views of a scene, for objectives that learn from it."""

from __future__ import annotations

from typing import Literal, NamedTuple

from jaxtyping import Bool, Float
from torch import Tensor

TeacherTarget = Literal["tokens", "pose_enc", "depth", "meters_per_unit"]


class TeacherTargets(NamedTuple):
    """What a teacher says of the first frame of each of t temporal patches; None for what it does not predict.

    Attributes:
        tokens: Of each of its layers.
        pose_enc: VGGT's pose encodings (translation, quaternion, fields of view) in the encoder's world: of VGGT
            and the dataset the frame of the first view.
        has_camera: The views with a valid camera.
        depth: Of each pixel, 0 where unknown.
        meters_per_unit: Of its lengths.
    """

    tokens: tuple[Float[Tensor, "t h w C"], ...] = ()
    pose_enc: Float[Tensor, "t 9"] | None = None
    has_camera: Bool[Tensor, " t"] | None = None
    depth: Float[Tensor, "t H W"] | None = None
    meters_per_unit: Float[Tensor, ""] | None = None
