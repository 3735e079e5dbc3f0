"""Qwen3-VL behind the backbone seam: DeepStack, and one block of the prompt per temporal patch."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers.models.qwen3_vl.modeling_qwen3_vl import (
    Qwen3VLTextAttention,
    Qwen3VLTextModel,
    Qwen3VLVisionAttention,
    Qwen3VLVisionPatchEmbed,
)

from zoo.backbones.attention import CameraAttention
from zoo.backbones.deepstack import add_features
from zoo.backbones.patch_embedding import PatchEmbedding
from zoo.backbones.qwen3_vl.preprocessor import Qwen3VLPreprocessor
from zoo.backbones.qwen3_vl.vision_rules import Qwen3VisionRules
from zoo.backbones.qwen_vl import QwenVLBackbone
from zoo.backbones.vision_attention import SegmentAttention
from zoo.encodings.encoded import QK
from zoo.sequences.time_index import SpanIndex, TimeIndex


class Qwen3VLAttention(CameraAttention, Qwen3VLTextAttention):
    """The decoder's attention with camera hooks behind the norms of queries and keys."""

    q_norm: Any
    k_norm: Any

    def normalize_heads(self, q: Tensor, k: Tensor) -> QK:
        return self.q_norm(q), self.k_norm(k)


class Qwen3VLDecoder(Qwen3VLTextModel):
    """The stock decoder, which adds features by the places of visual tokens: of a mask, a GPU waits in each layer."""

    def _deepstack_process(self, hidden_states: Tensor, visual_pos_masks: Tensor, visual_embeds: Tensor) -> Tensor:
        if visual_pos_masks.dtype == torch.bool:  # of the stock model's own forward
            added: Tensor = super()._deepstack_process(hidden_states, visual_pos_masks, visual_embeds)
            return added
        return add_features(hidden_states, visual_pos_masks, visual_embeds)


class FrameAttention(SegmentAttention, Qwen3VLVisionAttention):
    """The vision tower's attention, within frames."""


class Qwen3VLPatchEmbedding(PatchEmbedding, Qwen3VLVisionPatchEmbed):
    """The vision tower's patch embedding."""


class Qwen3VLBackbone(QwenVLBackbone):
    """The stock model with camera hooks; see `QwenVLBackbone`.

    The features of DeepStack are added to the hidden states of the visual tokens behind each of the first decoder
    layers. All temporal patches have the positions of still images, with their time as text in front.
    """

    hooked_classes = {Qwen3VLTextAttention: Qwen3VLAttention, Qwen3VLTextModel: Qwen3VLDecoder}
    vision_classes = {Qwen3VLVisionAttention: FrameAttention, Qwen3VLVisionPatchEmbed: Qwen3VLPatchEmbedding}
    preprocessor_class = Qwen3VLPreprocessor
    span_per_step = True
    tokens_per_second = 2  # Qwen2.5-VL's, for a time index in place of this model's own

    @property
    def vision_rules(self) -> Qwen3VisionRules:
        return Qwen3VisionRules.of(self.vlm.model.visual)

    def deepstack_inputs(self, places: Int[Tensor, " N"], features: Float[Tensor, "layers N D"]) -> dict[str, Any]:
        return {"visual_pos_masks": places, "deepstack_visual_embeds": list(features)}

    def default_time_index(self) -> TimeIndex:
        return SpanIndex()
