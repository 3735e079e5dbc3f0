"""Qwen3.5 behind the backbone seam: three of four decoder layers are Gated DeltaNet, every fourth is full attention."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import Tensor
from transformers.models.qwen3_5.modeling_qwen3_5 import (
    Qwen3_5Attention,
    Qwen3_5DecoderLayer,
    Qwen3_5GatedDeltaNet,
    Qwen3_5VisionAttention,
    Qwen3_5VisionPatchEmbed,
    apply_rotary_pos_emb,
)

from zoo.backbones.attention import CameraAttention
from zoo.backbones.base import MASKED
from zoo.backbones.deepstack import DeepstackLayer
from zoo.backbones.patch_embedding import PatchEmbedding
from zoo.backbones.qwen3_5.delta_net import ROW_PER_TOKEN, CameraDeltaNet
from zoo.backbones.qwen3_5.preprocessor import Qwen35Preprocessor
from zoo.backbones.qwen3_vl.vision_rules import Qwen3VisionRules
from zoo.backbones.qwen_vl import QwenVLBackbone
from zoo.backbones.vision_attention import SegmentAttention
from zoo.encodings.decoder_layout import DecoderLayout, HeadLayout
from zoo.encodings.encoded import QK
from zoo.sequences.batch import Sequences
from zoo.sequences.time_index import SpanIndex, TimeIndex

END_OF_TEXT, END_OF_TURN = 248044, 248046  # in the vocabulary of the released models


class Qwen35Attention(CameraAttention, Qwen3_5Attention):
    """The full attention with camera hooks: behind the norms of queries and keys, and before the output's gate.

    RoPE rotates the first quarter of the channels of a head.
    """

    head_dim: Any
    q_norm: Any
    k_norm: Any
    apply_rope = staticmethod(apply_rotary_pos_emb)

    def project_queries(self, hidden_states: Tensor) -> tuple[Tensor, Tensor | None]:
        q, gate = self.q_proj(hidden_states).unflatten(-1, (-1, 2 * self.head_dim)).chunk(2, -1)
        return q, gate.flatten(2)

    def normalize_heads(self, q: Tensor, k: Tensor) -> QK:
        return self.q_norm(q), self.k_norm(k)


class Qwen35Layer(DeepstackLayer, Qwen3_5DecoderLayer):
    """A layer of the decoder of either kind, behind which features may be added to the visual tokens."""

    @property
    def layer_idx(self) -> int:
        mixer: Any = self.linear_attn if self.block_type == "linear_attention" else self.self_attn
        return int(mixer.layer_idx)


class FrameAttention(SegmentAttention, Qwen3_5VisionAttention):
    """The vision tower's attention, within frames."""


class Qwen35PatchEmbedding(PatchEmbedding, Qwen3_5VisionPatchEmbed):
    """The vision tower's patch embedding."""


class Qwen35Backbone(QwenVLBackbone):
    """The stock model with camera hooks; see `QwenVLBackbone`.

    A video is written as in Qwen3-VL: each temporal patch has the positions of a still image, with its time as text in
    front. The vision tower has no DeepStack. Gated DeltaNet layers have no positions; their order is that of the
    recurrence.
    """

    hooked_classes = {
        Qwen3_5Attention: Qwen35Attention,
        Qwen3_5GatedDeltaNet: CameraDeltaNet,
        Qwen3_5DecoderLayer: Qwen35Layer,
    }
    vision_classes = {Qwen3_5VisionAttention: FrameAttention, Qwen3_5VisionPatchEmbed: Qwen35PatchEmbedding}
    preprocessor_class = Qwen35Preprocessor
    span_per_step = True
    is_hybrid = True
    tokens_per_second = 2  # Qwen2.5-VL's, for a time index in place of this model's own
    # of Gated DeltaNet without the decay and the step size, which have no more outputs than heads
    lora_targets = (*QwenVLBackbone.lora_targets, "in_proj_qkv", "in_proj_z", "out_proj")

    def __init__(self, vlm: Any, processor: Any, *args: Any, **kwargs: Any) -> None:
        super().__init__(vlm, processor, *args, **kwargs)
        # the config stops at the end of a text; a turn ends by the tokenizer's own token
        if processor is not None:
            end_of_turn = processor.tokenizer.eos_token_id
        else:
            end_of_turn = END_OF_TURN if END_OF_TEXT in self.stop_tokens else None
        if end_of_turn is not None and end_of_turn not in self.stop_tokens:
            self.stop_tokens.append(end_of_turn)

    @property
    def decoder_layout(self) -> DecoderLayout:
        text = self.vlm.config.text_config
        layout = replace(super().decoder_layout, kinds=tuple(text.layer_types))
        linear = replace(
            layout,
            kind="linear_attention",
            num_heads=text.linear_num_value_heads,
            num_key_value_heads=text.linear_num_key_heads,
            head=HeadLayout(text.linear_key_head_dim, ()),
            rope_frequencies=(),
        )
        return replace(layout, linear=linear)

    @property
    def vision_rules(self) -> Qwen3VisionRules:
        return Qwen3VisionRules.of(self.vlm.model.visual)

    @property
    def packs_questions(self) -> bool:
        return self.attn_implementation in MASKED

    def training_mask(self, sequences: Sequences) -> Any:
        """See `Backbone`; Gated DeltaNet layers, which ignore a mask without an error, get the places of questions."""
        assert sequences.questions is not None
        return super().training_mask(sequences) | {"linear_attention": sequences.questions}

    def question_mask(self, *groups: Any) -> Any:
        """See `Backbone`; Gated DeltaNet layers read one question at a time."""
        return {"full_attention": super().question_mask(*groups), "linear_attention": None}

    def step_mask(self, *groups: Any) -> Any:
        return self.question_mask(*groups) | {"linear_attention": ROW_PER_TOKEN}

    def default_time_index(self) -> TimeIndex:
        return SpanIndex()
