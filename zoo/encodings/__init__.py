"""Camera encodings: one file each beside `base.py`."""

from zoo.encodings.alibi import PoseALiBi
from zoo.encodings.append import Append
from zoo.encodings.base import CameraEncoding, EncodedCameras, ZeroChannels
from zoo.encodings.blocks import CameraMatrices
from zoo.encodings.cape import CaPE
from zoo.encodings.channels import ChannelBlock
from zoo.encodings.gta import GTA
from zoo.encodings.matrices import Matrices, MatrixEncoding
from zoo.encodings.multiview import multiview_attention, prope_attention
from zoo.encodings.on_heads import OnHeads
from zoo.encodings.on_layers import Alternate, OnLayers
from zoo.encodings.placements import Fraction, HighFrequencies, LowFrequencies, OnChannels, Placement, TSection
from zoo.encodings.pose_index import PoseIndex
from zoo.encodings.prope import PRoPE, projection_matrices
from zoo.encodings.rays import RayEmbedding, RayEncoding, token_points
from zoo.encodings.reference import ReferenceView, balanced_views, saddle_balanced, seen_from
from zoo.encodings.rotary import VORoPE, XYZRoPE
from zoo.encodings.stack import Stack
from zoo.encodings.symmetries import Symmetries
from zoo.encodings.view_attention import ViewAttention
from zoo.encodings.views import ViewMixer

__all__ = [
    "Alternate",
    "Append",
    "CaPE",
    "CameraEncoding",
    "CameraMatrices",
    "ChannelBlock",
    "EncodedCameras",
    "Fraction",
    "GTA",
    "HighFrequencies",
    "LowFrequencies",
    "Matrices",
    "MatrixEncoding",
    "OnChannels",
    "OnHeads",
    "OnLayers",
    "PRoPE",
    "Placement",
    "PoseALiBi",
    "PoseIndex",
    "RayEmbedding",
    "RayEncoding",
    "ReferenceView",
    "Stack",
    "Symmetries",
    "TSection",
    "VORoPE",
    "ViewAttention",
    "ViewMixer",
    "XYZRoPE",
    "ZeroChannels",
    "balanced_views",
    "multiview_attention",
    "projection_matrices",
    "prope_attention",
    "saddle_balanced",
    "seen_from",
    "token_points",
]
