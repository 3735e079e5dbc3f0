"""Qwen2.5-VL behind the backbone seam."""

from __future__ import annotations

from typing import Any

from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VLAttention, Qwen2_5_VLDecoderLayer

from zoo.backbones.attention import CameraAttention
from zoo.backbones.deepstack import DeepstackLayer
from zoo.backbones.qwen25_vl.vision_rules import Qwen25VisionRules
from zoo.backbones.qwen25_vl.vision_tower import install_fast_vision
from zoo.backbones.qwen_preprocessor import QwenVLPreprocessor
from zoo.backbones.qwen_vl import QwenVLBackbone


class Qwen25VLAttention(CameraAttention, Qwen2_5_VLAttention):
    """The decoder's attention with camera hooks."""


class Qwen25VLLayer(DeepstackLayer, Qwen2_5_VLDecoderLayer):
    """A layer of the decoder, behind which features may be added to the visual tokens."""


class Qwen25VLBackbone(QwenVLBackbone):
    """The stock model with camera hooks, and a faster vision tower with the same results; see `QwenVLBackbone`."""

    hooked_classes = {Qwen2_5_VLAttention: Qwen25VLAttention, Qwen2_5_VLDecoderLayer: Qwen25VLLayer}
    preprocessor_class = QwenVLPreprocessor

    def __init__(self, vlm: Any, processor: Any, *args: Any, **kwargs: Any) -> None:
        super().__init__(vlm, processor, *args, **kwargs)
        install_fast_vision(vlm.model.visual)
        self.tokens_per_second = vlm.config.vision_config.tokens_per_second

    @property
    def vision_rules(self) -> Qwen25VisionRules:
        return Qwen25VisionRules.of(self.vlm.config.vision_config)
