"""Camera encodings: one file each beside `base.py`."""

from zoo.encodings.base import (
    CameraEncoding,
    CameraMatrices,
    ChannelBlock,
    EncodedCameras,
    Fraction,
    Placement,
    TSection,
)
from zoo.encodings.prope import PRoPE, projection_matrices, prope_attention

__all__ = [
    "CameraEncoding",
    "CameraMatrices",
    "ChannelBlock",
    "EncodedCameras",
    "Fraction",
    "PRoPE",
    "Placement",
    "TSection",
    "projection_matrices",
    "prope_attention",
]
