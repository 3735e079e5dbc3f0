"""Qwen2.5-VL (arXiv 2502.13923); released folders are read by `zoo.checkpoints`."""

from zoo.backbones.qwen25_vl.backbone import Qwen25VLBackbone
from zoo.backbones.qwen25_vl.tiny import TinyQwen25VL, tiny_preprocessor

__all__ = ["Qwen25VLBackbone", "TinyQwen25VL", "tiny_preprocessor"]
