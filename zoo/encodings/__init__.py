"""Camera encodings: one file each beside `base.py`."""

from zoo.encodings.base import CameraEncoding, CameraMatrices, EncodedCameras
from zoo.encodings.multiview import prope_attention
from zoo.encodings.placements import ChannelBlock, Fraction, Placement, TSection
from zoo.encodings.prope import PRoPE, projection_matrices

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
