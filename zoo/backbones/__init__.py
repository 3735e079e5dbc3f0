"""Video-language models: `base.py`, what they share, and a folder for each."""

from zoo.backbones.base import Backbone, BackboneLoader, Preprocessor
from zoo.backbones.qwen3_vl.backbone import Qwen3VLBackbone
from zoo.backbones.qwen3_vl.tiny import TinyQwen3VL
from zoo.backbones.qwen25_vl.backbone import Qwen25VLBackbone
from zoo.backbones.qwen25_vl.tiny import TinyQwen25VL, tiny_preprocessor


def default_loader() -> BackboneLoader:
    """Return a tiny random model, the default backbone of `SpatialVLM`."""
    return TinyQwen25VL()
