"""Camera encodings in the decoder's attention, and view mixers on the 2D tokens."""

from zoo.encodings.alibi import PoseALiBi
from zoo.encodings.base import CameraEncoding, EncodedCameras, ViewMixer
from zoo.encodings.extra_channels import Compose, ExtraChannels
from zoo.encodings.matrices import MatrixEncoding
from zoo.encodings.placements import (
    AlternateAxes,
    ChannelPlacement,
    ChannelRange,
    DeltaNetLayers,
    HeadSubset,
    HighFrequencies,
    LayerSubset,
    LowFrequencies,
    Placement,
    TemporalSection,
    UnrotatedChannels,
)
from zoo.encodings.pose_axis import PointRoPE, PoseAxis, PoseIndex, ValueRoPE
from zoo.encodings.prope import GTA, CaPE, PRoPE, projection_matrices
from zoo.encodings.rayrope import RayAttention, RayRoPE, URoPE, rayrope_attention, urope_attention
from zoo.encodings.view_attention import (
    RayEmbedding,
    RayEncoding,
    ViewAttention,
    balanced_views,
    prope_attention,
    saddle_balanced,
)
