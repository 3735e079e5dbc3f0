"""Video-language models: one folder or file each beside `base.py`."""

from zoo.backbones.base import Backbone, BackboneLoader, Preprocessor
from zoo.backbones.qwen25_vl import Qwen25VLBackbone, TinyQwen25VL

__all__ = ["Backbone", "BackboneLoader", "Preprocessor", "Qwen25VLBackbone", "TinyQwen25VL"]
