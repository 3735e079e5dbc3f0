"""The menu of the zoo: every public class, so that class paths stay short and stable."""

from zoo.backbone import Backbone, LoRA, PretrainedQwen25VL
from zoo.cameras import Cameras
from zoo.encodings import CameraEncoding, Fraction, Placement, PRoPE, TSection
from zoo.errors import InputError
from zoo.metrics import VSIBenchScore, score_answer
from zoo.optim import LearningRates, WarmupCosine
from zoo.positions import FrameIndex, NoTime, Seconds, TimeIndex
from zoo.prope_mllm import PRoPEMLLM
from zoo.qwen25_vl import Qwen25VL
from zoo.tiny import TinyQwen25VL
from zoo.vlm import SpatialVLM

__all__ = [
    "Backbone",
    "CameraEncoding",
    "Cameras",
    "Fraction",
    "FrameIndex",
    "InputError",
    "LearningRates",
    "LoRA",
    "NoTime",
    "PRoPE",
    "PRoPEMLLM",
    "Placement",
    "PretrainedQwen25VL",
    "Qwen25VL",
    "Seconds",
    "SpatialVLM",
    "TSection",
    "TimeIndex",
    "TinyQwen25VL",
    "VSIBenchScore",
    "WarmupCosine",
    "score_answer",
]
