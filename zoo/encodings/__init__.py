"""Camera encodings in the decoder's attention, and view mixers on the 2D tokens."""

from zoo.encodings.alibi import PoseALiBi
from zoo.encodings.balanced_view import balanced_views, saddle_balanced
from zoo.encodings.base import CameraEncoding, ViewMixer
from zoo.encodings.cape import CaPE
from zoo.encodings.compose import Compose
from zoo.encodings.encoded import EncodedCameras
from zoo.encodings.extra_channels import ExtraChannels
from zoo.encodings.gta import GTA
from zoo.encodings.linear_layers import DeltaNetLayers
from zoo.encodings.matrices import MatrixEncoding
from zoo.encodings.placements import (
    ChannelPlacement,
    ChannelRange,
    HighFrequencies,
    LowFrequencies,
    Placement,
    TemporalSection,
    UnrotatedChannels,
)
from zoo.encodings.pose_axis import PoseAxis
from zoo.encodings.pose_index import PoseIndex
from zoo.encodings.prope import PRoPE, projection_matrices
from zoo.encodings.ray_encodings import RayEmbedding, RayEncoding
from zoo.encodings.rotary import PointRoPE, ValueRoPE
from zoo.encodings.subsets import AlternateAxes, HeadSubset, LayerSubset
from zoo.encodings.view_attention import ViewAttention, prope_attention
