"""Video-language models: one folder or file each beside `base.py`."""

from zoo.backbones.base import Backbone, BackboneLoader, Preprocessor
from zoo.backbones.qwen25_vl import Qwen25VLBackbone, TinyQwen25VL, tiny_preprocessor

__all__ = [
    "Backbone",
    "BackboneLoader",
    "Preprocessor",
    "Qwen25VLBackbone",
    "TinyQwen25VL",
    "default_loader",
    "tiny_preprocessor",
]


def default_loader() -> BackboneLoader:
    """A tiny random model, for a `SpatialVLM` without a backbone of its own."""
    return TinyQwen25VL()
