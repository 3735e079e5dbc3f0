"""CaPE: camera positional encoding, arXiv 2402.03908 (EscherNet), with six degrees of freedom."""

from __future__ import annotations

from typing import Any

from zoo.cameras import Cameras
from zoo.encodings.matrices import Matrices, MatrixEncoding
from zoo.encodings.placements import Placement
from zoo.encodings.prope import projection_matrices


class CaPE(MatrixEncoding):
    """q' = P^-1 q, k' = P^T k with P = V, world-to-camera: queries and keys only, by definition.

    The logit then sees (P_j P_i^-1)^T, so a change of world V -> V G cancels; with camera-to-world it would not.

    Args:
        placement: the channels; None is `ChannelRange(0, 0.5)`.
        world: `reference` and `scale`, see `CameraEncoding`.
    """

    def __init__(self, placement: Placement | None = None, **world: Any) -> None:
        super().__init__(placement, apply_to="qk", **world)

    def matrices(self, cameras: Cameras) -> Matrices:
        V, V_inverse = projection_matrices(cameras.world_to_camera)
        return Matrices(q=V_inverse, k=V.mT)
