"""Qwen2.5-VL behind the backbone seam."""

from __future__ import annotations

from typing import Any

from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import (
    Qwen2_5_VisionPatchEmbed,
    Qwen2_5_VLAttention,
    Qwen2_5_VLDecoderLayer,
    Qwen2_5_VLVisionAttention,
)

from zoo.backbones.attention import CameraAttention
from zoo.backbones.deepstack import DeepstackLayer
from zoo.backbones.patch_embedding import PatchEmbedding
from zoo.backbones.qwen25_vl.vision_rules import Qwen25VisionRules
from zoo.backbones.qwen_preprocessor import QwenVLPreprocessor
from zoo.backbones.qwen_vl import QwenVLBackbone
from zoo.backbones.vision_attention import SegmentAttention


class Qwen25VLAttention(CameraAttention, Qwen2_5_VLAttention):
    """The decoder's attention with camera hooks."""


class Qwen25VLLayer(DeepstackLayer, Qwen2_5_VLDecoderLayer):
    """A layer of the decoder, behind which features may be added to the visual tokens."""


class WindowAttention(SegmentAttention, Qwen2_5_VLVisionAttention):
    """The vision tower's attention, within windows or within frames."""


class Qwen25VLPatchEmbedding(PatchEmbedding, Qwen2_5_VisionPatchEmbed):
    """The vision tower's patch embedding."""


class Qwen25VLBackbone(QwenVLBackbone):
    """The stock model with camera hooks; see `QwenVLBackbone`."""

    hooked_classes = {Qwen2_5_VLAttention: Qwen25VLAttention, Qwen2_5_VLDecoderLayer: Qwen25VLLayer}
    vision_classes = {
        Qwen2_5_VLVisionAttention: WindowAttention,
        Qwen2_5_VisionPatchEmbed: Qwen25VLPatchEmbedding,
    }
    preprocessor_class = QwenVLPreprocessor

    def __init__(self, vlm: Any, processor: Any, *args: Any, **kwargs: Any) -> None:
        super().__init__(vlm, processor, *args, **kwargs)
        self.tokens_per_second = vlm.config.vision_config.tokens_per_second

    @property
    def vision_rules(self) -> Qwen25VisionRules:
        return Qwen25VisionRules.of(self.vlm.config.vision_config)
