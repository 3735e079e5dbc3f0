"""Video-language models: three seams, what the Qwen-VL family shares, and a folder for each model."""

from zoo.backbones.base import Backbone, BackboneLoader, Preprocessor, released_parts
from zoo.backbones.pretrained_fused import (
    PretrainedSpatialMLLM,
    PretrainedSpatialStack,
    PretrainedSpatialStackQwen25,
    PretrainedVGLLM,
)
from zoo.backbones.pretrained_qwen import PretrainedGeoVR, PretrainedQwen3VL, PretrainedQwen25VL, PretrainedQwen35
from zoo.backbones.qwen3_5.backbone import Qwen35Backbone
from zoo.backbones.qwen3_5.tiny import TinyQwen35
from zoo.backbones.qwen3_vl.backbone import Qwen3VLBackbone
from zoo.backbones.qwen3_vl.tiny import TinyQwen3VL
from zoo.backbones.qwen25_vl.backbone import Qwen25VLBackbone
from zoo.backbones.qwen25_vl.tiny import TinyQwen25VL, tiny_preprocessor


def default_loader() -> BackboneLoader:
    """Return a tiny random model, the default backbone of `SpatialVLM`."""
    return TinyQwen25VL()
