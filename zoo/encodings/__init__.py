"""Camera encodings in the decoder's attention, and view mixers on the 2D tokens.

Read `base.py` first, then `placements.py` and `prope.py`. The other files hold one family of encodings each.
`testing.py` helps authors of encodings.
"""

from zoo.encodings.alibi import PoseALiBi
from zoo.encodings.base import CameraEncoding, EncodedCameras, ViewMixer
from zoo.encodings.compose import Compose, DeltaNetLayers, HeadSubset, LayerSubset, LearnedStrength
from zoo.encodings.placements import (
    AlternateAxes,
    ChannelPlacement,
    ChannelRange,
    ExtraChannels,
    FrequencyRange,
    HighFrequencies,
    LowFrequencies,
    Placement,
    TemporalSection,
    UnrotatedChannels,
)
from zoo.encodings.prope import GTA, CaPE, MatrixEncoding, PRoPE, RayEncoding, projection_matrices
from zoo.encodings.rayrope import RayRoPE, rayrope_attention
from zoo.encodings.rotary import PointRoPE, PoseAxis, PoseIndex, ValueRoPE
from zoo.encodings.urope import URoPE, urope_attention
from zoo.encodings.view_mixers import PoseEmbedding, RayAttention, RayEmbedding, ViewAttention, prope_attention
