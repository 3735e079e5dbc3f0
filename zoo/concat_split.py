"""Half of each visual token is 2D, half is 3D."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from zoo.fusions import ConcatSplitFusion, Fusion
from zoo.geometry.base import GeometryEncoder
from zoo.vlm import SpatialVLM


class ConcatSplitMLLM(SpatialVLM):
    """2D tokens to one half of the decoder's channels and 3D tokens to the other, concatenated.

    Args:
        geometry: where the 3D tokens come from.
        fusion: `ConcatSplitFusion`, or another one.
        parts: the other arguments of `SpatialVLM`.
    """

    def __init__(
        self,
        geometry: Callable[[], GeometryEncoder],
        fusion: Callable[[int, int], Fusion] = ConcatSplitFusion,
        **parts: Any,
    ):
        super().__init__(geometry=geometry, fusion=fusion, **parts)
