"""Half of each visual token is 2D, half is 3D."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from zoo.fusions import ConcatSplitFusion, Fusion
from zoo.geometry import GeometryEncoder, TinyVGGT
from zoo.vlm import SpatialVLM


class ConcatSplitMLLM(SpatialVLM):
    """2D tokens to one half of the decoder's channels and 3D tokens to the other, concatenated.

    Args:
        geometry: source of the 3D tokens, by default the VGGT that geometry_tiny.yaml pretrains.
        fusion: `ConcatSplitFusion`, or another one.
        parts: the other arguments of `SpatialVLM`.
    """

    def __init__(
        self,
        geometry: Callable[[], GeometryEncoder] = lambda: TinyVGGT(path="runs/vggt_tiny"),
        fusion: Callable[[int, int], Fusion] = ConcatSplitFusion,
        **parts: Any,
    ):
        super().__init__(geometry=geometry, fusion=fusion, **parts)
