"""The menu of the zoo: every public class, so that class paths stay short and stable."""

from zoo.backbone import Backbone, LoRA, PretrainedQwen25VL
from zoo.cameras import Cameras
from zoo.checkpoints import PretrainedSpatialMLLM
from zoo.concat_split import ConcatSplitMLLM
from zoo.encodings import CameraEncoding, Fraction, Placement, PRoPE, TSection
from zoo.errors import InputError
from zoo.fusions import AddFusion, CameraTokenFusion, ConcatSplitFusion, Fusion
from zoo.geometry import GeometryEncoder, GivenGeometry, PretrainedVGGT, TinyVGGT
from zoo.geometry_pretraining import VGGTPretraining
from zoo.metrics import VSIBenchScore, score_answer
from zoo.optim import LearningRates, WarmupCosine
from zoo.positions import FrameIndex, NoTime, Seconds, TimeIndex
from zoo.prope_mllm import PRoPEMLLM
from zoo.qwen25_vl import Qwen25VL
from zoo.spatial_mllm import SpatialMLLM
from zoo.tiny import TinyQwen25VL
from zoo.vlm import SpatialVLM

__all__ = [
    "AddFusion",
    "Backbone",
    "CameraEncoding",
    "CameraTokenFusion",
    "Cameras",
    "ConcatSplitFusion",
    "ConcatSplitMLLM",
    "Fraction",
    "FrameIndex",
    "Fusion",
    "GeometryEncoder",
    "GivenGeometry",
    "InputError",
    "LearningRates",
    "LoRA",
    "NoTime",
    "PRoPE",
    "PRoPEMLLM",
    "Placement",
    "PretrainedQwen25VL",
    "PretrainedSpatialMLLM",
    "PretrainedVGGT",
    "Qwen25VL",
    "Seconds",
    "SpatialMLLM",
    "SpatialVLM",
    "TSection",
    "TimeIndex",
    "TinyQwen25VL",
    "TinyVGGT",
    "VGGTPretraining",
    "VSIBenchScore",
    "WarmupCosine",
    "score_answer",
]
