"""Camera encodings: one file each beside `base.py`."""

from zoo.encodings.base import CameraEncoding, EncodedCameras, ZeroChannels
from zoo.encodings.matrices import CameraMatrices, Matrices, MatrixEncoding
from zoo.encodings.multiview import prope_attention
from zoo.encodings.placements import ChannelBlock, Fraction, Placement, TSection
from zoo.encodings.prope import PRoPE, projection_matrices
from zoo.encodings.symmetries import Symmetries

__all__ = [
    "CameraEncoding",
    "CameraMatrices",
    "ChannelBlock",
    "EncodedCameras",
    "Fraction",
    "Matrices",
    "MatrixEncoding",
    "PRoPE",
    "Placement",
    "Symmetries",
    "TSection",
    "projection_matrices",
    "ZeroChannels",
    "prope_attention",
]
