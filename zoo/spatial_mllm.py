"""Spatial-MLLM: 2D tokens of Qwen2.5-VL plus VGGT's 3D tokens."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from zoo.fusions import AddFusion, Fusion
from zoo.geometry import GeometryEncoder, TinyVGGT
from zoo.vlm import SpatialVLM


class SpatialMLLM(SpatialVLM):
    """Spatial-MLLM (arXiv 2505.23747): the 3D tokens through the connector, added to the 2D tokens.

    Args:
        geometry: source of the 3D tokens, VGGT in the paper; by default the one that geometry_tiny.yaml pretrains.
        fusion: `AddFusion`, or another one.
        parts: the other arguments of `SpatialVLM`.
    """

    def __init__(
        self,
        geometry: Callable[[], GeometryEncoder] = lambda: TinyVGGT(path="runs/vggt_tiny"),
        fusion: Callable[[int, int], Fusion] = AddFusion,
        **parts: Any,
    ):
        super().__init__(geometry=geometry, fusion=fusion, **parts)
