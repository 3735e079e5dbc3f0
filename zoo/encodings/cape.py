"""CaPE, the camera positional encoding of EscherNet (arXiv 2402.03908), with six degrees of freedom."""

from __future__ import annotations

from typing import Any

from zoo.cameras import Cameras
from zoo.encodings.matrices import MatrixEncoding
from zoo.encodings.placements import Matrices, Placement
from zoo.encodings.prope import projection_matrices


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
