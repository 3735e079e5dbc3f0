"""The menu of the zoo: every public class, so that class paths stay short and stable."""

from zoo.backbone import Backbone, LoRA
from zoo.cameras import Cameras
from zoo.checkpoints import PretrainedQwen25VL, PretrainedSpatialMLLM
from zoo.concat_split import ConcatSplitMLLM
from zoo.encodings import (
    GTA,
    Alternate,
    Append,
    CameraEncoding,
    CaPE,
    Fraction,
    HighFrequencies,
    LowFrequencies,
    OnChannels,
    OnHeads,
    OnLayers,
    Placement,
    PoseALiBi,
    PoseIndex,
    PRoPE,
    RayEmbedding,
    RayEncoding,
    Stack,
    TSection,
    ViewAttention,
    ViewMixer,
    VORoPE,
    XYZRoPE,
)
from zoo.errors import InputError
from zoo.fusions import AddFusion, CameraTokenFusion, ConcatSplitFusion, Fusion
from zoo.geometry import GeometryCache, GeometryEncoder, GivenGeometry, PretrainedVGGT, TinyVGGT
from zoo.geometry_pretraining import VGGTPretraining
from zoo.metrics import VSIBenchScore, score_answer
from zoo.optim import LearningRates, WarmupCosine
from zoo.prope_mllm import PRoPEMLLM
from zoo.qwen25_vl import Qwen25VL
from zoo.spatial_mllm import SpatialMLLM
from zoo.time_index import FrameId, FrameIndex, NoTime, Pose, PosePath, Seconds, TimeIndex
from zoo.tiny import TinyQwen25VL
from zoo.vlm import SpatialVLM

__all__ = [
    "AddFusion",
    "Alternate",
    "Append",
    "Backbone",
    "CaPE",
    "CameraEncoding",
    "CameraTokenFusion",
    "Cameras",
    "ConcatSplitFusion",
    "ConcatSplitMLLM",
    "Fraction",
    "FrameId",
    "FrameIndex",
    "Fusion",
    "GTA",
    "GeometryCache",
    "GeometryEncoder",
    "GivenGeometry",
    "HighFrequencies",
    "InputError",
    "LearningRates",
    "LoRA",
    "LowFrequencies",
    "NoTime",
    "OnChannels",
    "OnHeads",
    "OnLayers",
    "PRoPE",
    "PRoPEMLLM",
    "Placement",
    "Pose",
    "PoseALiBi",
    "PoseIndex",
    "PosePath",
    "PretrainedQwen25VL",
    "PretrainedSpatialMLLM",
    "PretrainedVGGT",
    "Qwen25VL",
    "RayEmbedding",
    "RayEncoding",
    "Seconds",
    "SpatialMLLM",
    "SpatialVLM",
    "Stack",
    "TSection",
    "TimeIndex",
    "TinyQwen25VL",
    "TinyVGGT",
    "VGGTPretraining",
    "VORoPE",
    "VSIBenchScore",
    "ViewAttention",
    "ViewMixer",
    "WarmupCosine",
    "XYZRoPE",
    "score_answer",
]
