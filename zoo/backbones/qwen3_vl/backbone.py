"""Qwen3-VL behind the backbone seam: DeepStack, and one block of the prompt per temporal patch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import Qwen3VLForConditionalGeneration
from transformers.models.qwen3_vl.modeling_qwen3_vl import BaseModelOutputWithDeepstackFeatures, Qwen3VLTextAttention

from zoo.backbones.attention import CameraAttention, CameraGeneration
from zoo.backbones.base import VisualTokens
from zoo.backbones.qwen3_vl.preprocessor import Qwen3VLPreprocessor
from zoo.backbones.qwen_vl import QwenVLBackbone
from zoo.encodings.encoded import QK
from zoo.sequences.layout import MediaKind
from zoo.sequences.time_index import SpanIndex, TimeIndex


class Qwen3VLAttention(CameraAttention, Qwen3VLTextAttention):
    """The decoder's attention with camera hooks behind the norms of queries and keys."""

    q_norm: Any
    k_norm: Any

    def normalize_heads(self, q: Tensor, k: Tensor) -> QK:
        return self.q_norm(q), self.k_norm(k)


class CameraQwen3VL(CameraGeneration, Qwen3VLForConditionalGeneration):
    """The stock model with camera hooks in `generate`."""


class Qwen3VLBackbone(QwenVLBackbone):
    """The stock model with camera hooks; see `QwenVLBackbone`.

    The features of DeepStack are added to the hidden states of the visual tokens behind each of the first decoder
    layers. All temporal patches have the positions of still images, with their time as text in front.
    """

    camera_model = CameraQwen3VL
    hooked_classes = {Qwen3VLTextAttention: Qwen3VLAttention}
    preprocessor_class = Qwen3VLPreprocessor
    span_per_step = True
    tokens_per_second = 2  # Qwen2.5-VL's, for a time index in place of this model's own

    def default_time_index(self) -> TimeIndex:
        return SpanIndex()

    def encode_vision(
        self, pixel_values: Float[Tensor, "patches channels"], grid_thw: Int[Tensor, "M 3"]
    ) -> list[VisualTokens]:
        output = self.vlm.model.get_video_features(pixel_values, grid_thw, return_dict=True)
        layers = zip(*output.deepstack_features, strict=True)  # layers of each medium, from media of each layer
        return [VisualTokens(*each) for each in zip(output.pooler_output, map(torch.stack, layers), strict=True)]

    def visual_inputs(
        self, media: Mapping[MediaKind, Sequence[VisualTokens]], input_ids: Int[Tensor, "B L"]
    ) -> dict[str, Any]:
        outputs = {
            kind: BaseModelOutputWithDeepstackFeatures(
                pooler_output=tuple(each.tokens for each in shown),
                deepstack_features=[list(layer) for layer in zip(*(each.deepstack for each in shown), strict=True)],
            )
            for kind, shown in media.items()
            if shown
        }
        return {"mm_encoder_outputs": outputs}
