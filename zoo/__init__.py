"""The menu of the zoo: every public class, so that class paths stay short and stable."""

from zoo.backbone import Backbone, LoRA
from zoo.cameras import Cameras
from zoo.checkpoints import PretrainedQwen25VL, PretrainedSpatialMLLM
from zoo.concat_split import ConcatSplitMLLM
from zoo.encodings import (
    GTA,
    AlternateAxes,
    CameraEncoding,
    CaPE,
    ChannelPlacement,
    ChannelRange,
    Compose,
    ExtraChannels,
    HeadSubset,
    HighFrequencies,
    LayerSubset,
    LowFrequencies,
    Placement,
    PointRoPE,
    PoseALiBi,
    PoseIndex,
    PRoPE,
    RayEmbedding,
    RayEncoding,
    TemporalSection,
    ValueRoPE,
    ViewAttention,
    ViewMixer,
)
from zoo.errors import InputError
from zoo.fusions import AddFusion, CameraTokenFusion, ConcatSplitFusion, Fusion
from zoo.geometry import DatasetGeometry, GeometryCache, GeometryEncoder, PretrainedVGGT, TinyVGGT
from zoo.geometry_pretraining import VGGTPretraining
from zoo.metrics import VSIBenchScore, score_answer
from zoo.optim import LearningRates, WarmupCosine
from zoo.prope_mllm import PRoPEMLLM
from zoo.qwen25_vl import Qwen25VL
from zoo.spatial_mllm import SpatialMLLM
from zoo.time_index import (
    ConstantIndex,
    FrameNumberIndex,
    PathLengthIndex,
    PoseDistanceIndex,
    StepIndex,
    TimeIndex,
    TimestampIndex,
)
from zoo.tiny import TinyQwen25VL
from zoo.vlm import SpatialVLM

__all__ = [
    "AddFusion",
    "AlternateAxes",
    "ExtraChannels",
    "Backbone",
    "CaPE",
    "CameraEncoding",
    "CameraTokenFusion",
    "Cameras",
    "ConcatSplitFusion",
    "ConcatSplitMLLM",
    "ChannelRange",
    "FrameNumberIndex",
    "StepIndex",
    "Fusion",
    "GTA",
    "GeometryCache",
    "GeometryEncoder",
    "DatasetGeometry",
    "HighFrequencies",
    "InputError",
    "LearningRates",
    "LoRA",
    "LowFrequencies",
    "ConstantIndex",
    "ChannelPlacement",
    "HeadSubset",
    "LayerSubset",
    "PRoPE",
    "PRoPEMLLM",
    "Placement",
    "PoseDistanceIndex",
    "PoseALiBi",
    "PoseIndex",
    "PathLengthIndex",
    "PretrainedQwen25VL",
    "PretrainedSpatialMLLM",
    "PretrainedVGGT",
    "Qwen25VL",
    "RayEmbedding",
    "RayEncoding",
    "TimestampIndex",
    "SpatialMLLM",
    "SpatialVLM",
    "Compose",
    "TemporalSection",
    "TimeIndex",
    "TinyQwen25VL",
    "TinyVGGT",
    "VGGTPretraining",
    "ValueRoPE",
    "VSIBenchScore",
    "ViewAttention",
    "ViewMixer",
    "WarmupCosine",
    "PointRoPE",
    "score_answer",
]
