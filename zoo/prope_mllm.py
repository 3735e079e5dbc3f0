"""The camera-aware model: visual tokens that know their cameras."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from zoo.encodings import CameraEncoding, ViewAttention, ViewMixer
from zoo.fusions import ConcatSplitFusion, Fusion
from zoo.geometry import DatasetGeometry, GeometryEncoder
from zoo.vlm import SpatialVLM


class PRoPEMLLM(SpatialVLM):
    """2D tokens to one half of the decoder's channels, 3D tokens to the other; PRoPE (arXiv 2507.10496) on the 2D half.

    The views attend to each other by their cameras before both halves are joined, and in the decoder's attention as
    well where `encoding` says so. Without both it is `ConcatSplitMLLM`.

    Args:
        camera_encoding: of the decoder's attention, `PRoPE` in prope.yaml; null is the stock attention, bit for bit.
        view_mixer: of the 2D half, `ViewAttention`, or another one, or null.
        geometry: source of the 3D tokens, by default the rays of the dataset's cameras; null only with `fusion: null`.
        fusion: `ConcatSplitFusion`, or another one; null has 2D tokens alone.
        parts: the other arguments of `SpatialVLM`.
    """

    def __init__(
        self,
        camera_encoding: CameraEncoding | None,
        view_mixer: Callable[[int], ViewMixer] | None = ViewAttention,
        geometry: Callable[[], GeometryEncoder] | None = lambda: DatasetGeometry(depth=False),
        fusion: Callable[[int, int], Fusion] | None = ConcatSplitFusion,
        **parts: Any,
    ):
        super().__init__(
            camera_encoding=camera_encoding, view_mixer=view_mixer, geometry=geometry, fusion=fusion, **parts
        )
