"""Camera encodings: one file each beside `base.py`."""

from zoo.encodings.alibi import PoseALiBi
from zoo.encodings.base import CameraEncoding, EncodedCameras, ZeroChannels
from zoo.encodings.blocks import CameraMatrices
from zoo.encodings.cape import CaPE
from zoo.encodings.channels import ChannelBlock
from zoo.encodings.compose import Compose
from zoo.encodings.extra_channels import ExtraChannels
from zoo.encodings.gta import GTA
from zoo.encodings.head_subset import HeadSubset
from zoo.encodings.layer_subset import AlternateAxes, LayerSubset
from zoo.encodings.matrices import Matrices, MatrixEncoding
from zoo.encodings.multiview import multiview_attention, prope_attention
from zoo.encodings.placements import (
    ChannelPlacement,
    ChannelRange,
    HighFrequencies,
    LowFrequencies,
    Placement,
    TemporalSection,
)
from zoo.encodings.pose_index import PoseIndex
from zoo.encodings.prope import PRoPE, projection_matrices
from zoo.encodings.rays import RayEmbedding, RayEncoding
from zoo.encodings.reference import ReferenceView, balanced_views, saddle_balanced, to_reference_frame
from zoo.encodings.rotary import PointRoPE, ValueRoPE
from zoo.encodings.symmetries import Symmetries
from zoo.encodings.view_attention import ViewAttention
from zoo.encodings.view_mixer import ViewMixer

__all__ = [
    "AlternateAxes",
    "ExtraChannels",
    "CaPE",
    "CameraEncoding",
    "CameraMatrices",
    "ChannelBlock",
    "EncodedCameras",
    "ChannelRange",
    "GTA",
    "HighFrequencies",
    "LowFrequencies",
    "Matrices",
    "MatrixEncoding",
    "ChannelPlacement",
    "HeadSubset",
    "LayerSubset",
    "PRoPE",
    "Placement",
    "PoseALiBi",
    "PoseIndex",
    "RayEmbedding",
    "RayEncoding",
    "ReferenceView",
    "Compose",
    "Symmetries",
    "TemporalSection",
    "ValueRoPE",
    "ViewAttention",
    "ViewMixer",
    "PointRoPE",
    "ZeroChannels",
    "balanced_views",
    "multiview_attention",
    "projection_matrices",
    "prope_attention",
    "saddle_balanced",
    "to_reference_frame",
]
