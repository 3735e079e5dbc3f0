"""Qwen2.5-VL behind the backbone seam."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import Qwen2_5_VLForConditionalGeneration
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VLAttention, Qwen2_5_VLDecoderLayer

from zoo.backbones.attention import CameraAttention, CameraGeneration
from zoo.backbones.base import VisualTokens
from zoo.backbones.deepstack import DeepFeatures, DeepstackLayer
from zoo.backbones.qwen25_vl.vision_tower import install_fast_vision
from zoo.backbones.qwen_preprocessor import QwenVLPreprocessor
from zoo.backbones.qwen_vl import QwenVLBackbone
from zoo.sequences.layout import MediaKind


class Qwen25VLAttention(CameraAttention, Qwen2_5_VLAttention):
    """The decoder's attention with camera hooks."""


class Qwen25VLLayer(DeepstackLayer, Qwen2_5_VLDecoderLayer):
    """A layer of the decoder, behind which features may be added to the visual tokens."""


class CameraQwen25VL(CameraGeneration, Qwen2_5_VLForConditionalGeneration):
    """The stock model with camera hooks in `generate`."""


class Qwen25VLBackbone(QwenVLBackbone):
    """The stock model with camera hooks, and a faster vision tower with the same results; see `QwenVLBackbone`."""

    camera_model = CameraQwen25VL
    hooked_classes = {Qwen2_5_VLAttention: Qwen25VLAttention, Qwen2_5_VLDecoderLayer: Qwen25VLLayer}
    preprocessor_class = QwenVLPreprocessor

    def __init__(self, vlm: Any, processor: Any, *args: Any, **kwargs: Any) -> None:
        super().__init__(vlm, processor, *args, **kwargs)
        install_fast_vision(vlm.model.visual)
        self.tokens_per_second = vlm.config.vision_config.tokens_per_second

    def encode_vision(
        self, pixel_values: Float[Tensor, "patches channels"], grid_thw: Int[Tensor, "M 3"]
    ) -> list[VisualTokens]:
        media = self.vlm.model.get_video_features(pixel_values, grid_thw, return_dict=True).pooler_output
        return [VisualTokens(tokens, tokens.new_empty(0, *tokens.shape)) for tokens in media]

    def visual_inputs(
        self, media: Mapping[MediaKind, Sequence[VisualTokens]], input_ids: Int[Tensor, "B L"]
    ) -> dict[str, Any]:
        shown = {kind: each for kind, each in media.items() if each}
        inputs: dict[str, Any] = {
            "mm_encoder_outputs": {
                kind: BaseModelOutputWithPooling(pooler_output=tuple(medium.tokens for medium in each))
                for kind, each in shown.items()
            }
        }
        features = [medium.deepstack for each in shown.values() for medium in each]
        if any(map(len, features)):  # of a fusion
            ids = input_ids.flatten()
            places = [(ids == getattr(self.placeholders, kind)).nonzero()[:, 0] for kind in shown]
            inputs["deepstack"] = DeepFeatures(torch.cat(places), torch.cat(features, 1))
        return inputs
