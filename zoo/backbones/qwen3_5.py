"""Qwen3.5, a hybrid decoder. Released folders are read by `zoo.backbones.pretrained`."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor
from transformers import Qwen3_5ForConditionalGeneration, Qwen3VLProcessor
from transformers.models.qwen3_5.modeling_qwen3_5 import (
    Qwen3_5Attention,
    Qwen3_5DecoderLayer,
    Qwen3_5GatedDeltaNet,
    Qwen3_5VisionAttention,
    Qwen3_5VisionPatchEmbed,
    Qwen3_5VisionPatchMerger,
    apply_mask_to_padding_states,
    apply_rotary_pos_emb,
    causal_conv1d_fn,
    torch_chunk_gated_delta_rule,
)

from zoo.backbones.base import Message
from zoo.backbones.decoder import MASKED, CameraAttention, FusionLayer, check_num_tokens
from zoo.backbones.qwen3_vl import Qwen3VisionRules, Qwen3VLPreprocessor
from zoo.backbones.qwen3_vl import tiny_processor as tiny_qwen3_vl_processor
from zoo.backbones.qwen_vl import QwenVLBackbone, TinyQwenVL
from zoo.backbones.vision import PatchEmbedding, SegmentAttention, VisionMerger
from zoo.encodings.base import QK, DecoderLayout, EncodedCameras, HeadLayout
from zoo.faulty_kernels import check_delta_rule
from zoo.sequences.batch import Sequences
from zoo.sequences.packing import QuestionPlaces
from zoo.sequences.time_index import SpanIndex, TimeIndex
from zoo.values import check_shape

# ---- Frames and text to inputs: as in Qwen3-VL, with an empty block of thoughts before each answer -------------------

NO_THOUGHTS = "<think>\n\n</think>\n\n"


class Qwen35Preprocessor(Qwen3VLPreprocessor):
    """See `Preprocessor`. Thinking is switched off for all model sizes."""

    title = "Qwen3.5"
    template_options = {"enable_thinking": False}

    def texts(self, messages: Sequence[Message]) -> list[str]:
        """See `Preprocessor`. Answers are stripped, as by the chat template."""
        return super().texts(
            [each | {"content": each["content"].strip()} if each["role"] == "assistant" else each for each in messages]
        )

    def history(self, texts: Sequence[str]) -> str:
        """See `QwenVLPreprocessor`. The chat template leaves out the thoughts of earlier answers."""
        prompts = [text.removesuffix(NO_THOUGHTS) for text in texts[::2]]
        answers = [text.rpartition("</think>")[2].lstrip("\n") for text in texts[1::2]]
        return "".join(chain.from_iterable(zip(prompts, answers, strict=True)))


# ---- Gated DeltaNet with camera hooks, and with several questions that share a prefix's state ------------------------

ROW_PER_TOKEN = "row_per_token"  # replaces a mask: each token of a sequence continues from its own row of states


class CameraDeltaNet(Qwen3_5GatedDeltaNet):
    """A Gated DeltaNet layer with a `camera_encoding`, and with several questions in a training sequence.

    Without either, the original forward runs. The layer's state is written with encoded keys and values, so later
    steps, which contain only text, need no encoding.
    """

    def forward(
        self,
        hidden_states: Tensor,
        cache: Any = None,
        attention_mask: Tensor | QuestionPlaces | str | None = None,
        camera_encoding: EncodedCameras | None = None,
        **kwargs: Any,
    ) -> Tensor:
        """Run the original forward with the encoding's hooks.

        Args:
            hidden_states: (B, L, width).
            cache: Cache for answers. It has no states yet if there is an encoding.
            attention_mask: (B, L) mask of tokens that are not padding, or the places of the questions after each
                prefix, or `ROW_PER_TOKEN`.
            camera_encoding: Encoding of exactly these tokens. None changes nothing.
            **kwargs: Other arguments of the original forward.

        Raises:
            ValueError: The encoding has another number of tokens, or comes after the first call with a cache.
        """
        if camera_encoding is not None:
            check_num_tokens(camera_encoding, hidden_states)
            # an encoding of full attention may have hooks for later steps, which do not apply to this layer
            camera_encoding = camera_encoding.at_linear_layer(self.layer_idx, hidden_states)
        if camera_encoding is not None and cache is not None and cache.has_previous_state(self.layer_idx):
            raise ValueError(
                "a camera encoding in a Gated DeltaNet layer reads a prompt in one call: its cache is filled"
            )
        if isinstance(attention_mask, str):
            step: Tensor = super().forward(hidden_states.transpose(0, 1), cache=cache, **kwargs)
            return step.transpose(0, 1)
        questions = attention_mask if isinstance(attention_mask, QuestionPlaces) else None
        if camera_encoding is None and questions is None:
            output: Tensor = super().forward(hidden_states, cache=cache, attention_mask=attention_mask, **kwargs)
            return output
        encoding = camera_encoding or EncodedCameras()
        hidden_states = apply_mask_to_padding_states(hidden_states, None if questions else attention_mask)
        # 1. Projections: q, k and v together; decay and step size of each value head.
        mixed = self.in_proj_qkv(hidden_states)
        decay = -self.A_log.float().exp() * F.softplus(self.in_proj_a(hidden_states).float() + self.dt_bias)
        beta = self.in_proj_b(hidden_states).sigmoid()
        # 2. The convolution, and the encoding's hooks.
        if cache is not None:
            cache.update_conv_state(mixed.transpose(1, 2), self.layer_idx, conv_kernel_size=self.conv_kernel_size)
        q, k, v = self._heads(mixed)
        sizes = q.shape, k.shape, v.shape
        q, k = encoding.after_rope(*encoding.before_rope(q, k))
        v = encoding.transform_values(v)
        for name, found, size in zip(("queries", "keys", "values"), (q, k, v), sizes, strict=True):
            check_shape(encoding, f"{name} (B, L, heads, D)", found, *size)
        # 3. The delta rule: the prefix first, then each question from the prefix's state.
        if questions is None:
            output, state = self._delta_rule(q, k, v, decay, beta)
        else:
            prefix = questions.is_prefix[..., None]  # other tokens do not change the state
            output, state = self._delta_rule(q, k, v, decay * prefix, beta * prefix)
            output = self._put_questions(questions, output, state, mixed, decay, beta)
        if cache is not None:
            cache.update_recurrent_state(state, self.layer_idx)
        # 4. The gated norm.
        output = encoding.transform_outputs(output)
        check_shape(encoding, "outputs (B, L, heads, D)", output, *sizes[2])
        gate = self.in_proj_z(hidden_states).view(-1, self.head_v_dim)
        output = self.norm(output.reshape(-1, self.head_v_dim), gate)
        return self.out_proj(output.view(*hidden_states.shape[:2], -1))

    def _heads(self, mixed: Float[Tensor, "B L C"]) -> tuple[Tensor, Tensor, Tensor]:
        """Return q, k (B, L, key heads, D) and v (B, L, value heads, D) after the convolution."""
        weight = self.conv1d.weight.squeeze(1)
        mixed = causal_conv1d_fn(mixed.transpose(1, 2), weight, self.conv1d.bias, activation=self.activation)
        q, k, v = mixed.transpose(1, 2).split((self.key_dim, self.key_dim, self.value_dim), -1)
        q, k = (x.unflatten(-1, (self.num_k_heads, self.head_k_dim)) for x in (q, k))
        return q, k, v.unflatten(-1, (self.num_v_heads, self.head_v_dim))

    def _delta_rule(
        self, q: Tensor, k: Tensor, v: Tensor, decay: Tensor, beta: Tensor, state: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return outputs and the last state. Queries and keys are normalized inside."""
        outputs, last = torch_chunk_gated_delta_rule(
            q,
            k,
            v,
            g=decay,
            beta=beta,
            initial_state=state,
            output_final_state=True,
            use_qk_l2norm_in_kernel=True,
        )
        return outputs, last

    def _put_questions(
        self, questions: QuestionPlaces, output: Tensor, state: Tensor, mixed: Tensor, decay: Tensor, beta: Tensor
    ) -> Tensor:
        """Insert the outputs of the questions, which are text without cameras, at their places.

        Nothing is written in place, so the gradient reaches the prefix through its state and the convolution.
        """
        context, exists = questions.before(self.conv_kernel_size - 1)
        flat = mixed.flatten(0, 1)
        own = torch.cat((flat[context] * exists[..., None], flat[questions.places]), 1)
        q, k, v = (x[:, context.shape[1] :] for x in self._heads(own))
        decay, beta = (x.flatten(0, 1)[questions.places] * questions.mask[..., None] for x in (decay, beta))
        answers, _ = self._delta_rule(q, k, v, decay, beta, state[questions.row])
        answers = answers.flatten(0, 1)[questions.sources]
        return output.flatten(0, 1).index_copy(0, questions.targets, answers).view_as(output)


# ---- The model: three of four decoder layers are Gated DeltaNet, every fourth is full attention ----------------------

END_OF_TEXT, END_OF_TURN = 248044, 248046  # token ids of the released models


class Qwen35Attention(CameraAttention, Qwen3_5Attention):
    """The full attention with camera hooks, after the norms of queries and keys and before the output's gate.

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


class Qwen35Layer(FusionLayer, Qwen3_5DecoderLayer):
    """A decoder layer of either kind, in which a fusion may change the visual tokens."""

    @property
    def layer_idx(self) -> int:
        mixer: Any = self.linear_attn if self.block_type == "linear_attention" else self.self_attn
        return int(mixer.layer_idx)


class FrameAttention(SegmentAttention, Qwen3_5VisionAttention):
    """The vision encoder's attention, within frames."""


class Qwen35PatchEmbedding(PatchEmbedding, Qwen3_5VisionPatchEmbed):
    """The vision encoder's patch embedding."""


class Qwen35Merger(VisionMerger, Qwen3_5VisionPatchMerger):
    """The vision encoder's merger."""


class Qwen35Backbone(QwenVLBackbone):
    """The original model with camera hooks, see `QwenVLBackbone`.

    A video is written as in Qwen3-VL: each temporal patch has the positions of an image, with its time as text before
    it. The vision encoder has no DeepStack. Gated DeltaNet layers have no positions. Their order is the order of the
    recurrence.
    """

    hooked_classes = {
        Qwen3_5Attention: Qwen35Attention,
        Qwen3_5GatedDeltaNet: CameraDeltaNet,
        Qwen3_5DecoderLayer: Qwen35Layer,
    }
    vision_classes = {
        Qwen3_5VisionAttention: FrameAttention,
        Qwen3_5VisionPatchEmbed: Qwen35PatchEmbedding,
        Qwen3_5VisionPatchMerger: Qwen35Merger,
    }
    preprocessor_class = Qwen35Preprocessor
    span_per_step = True
    is_hybrid = True
    tokens_per_second = 2  # Qwen2.5-VL's value, for a time index that replaces this model's own
    # Gated DeltaNet's decay and step size are left out, because they have only one output per head
    lora_targets = (*QwenVLBackbone.lora_targets, "in_proj_qkv", "in_proj_z", "out_proj")

    def __init__(self, vlm: Any, processor: Any, *args: Any, **kwargs: Any) -> None:
        super().__init__(vlm, processor, *args, **kwargs)
        # the config stops at the end of a text, but a turn ends with the tokenizer's own token
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

    def decode(self, inputs: Mapping[str, Any], *, cache: Any = None, use_cache: bool = False) -> Any:
        if torch.is_grad_enabled():
            check_delta_rule()
        return super().decode(inputs, cache=cache, use_cache=use_cache)

    @property
    def packs_questions(self) -> bool:
        return self.attn_implementation in MASKED

    def training_mask(self, sequences: Sequences) -> Any:
        """See `Backbone`. Gated DeltaNet layers silently ignore masks, so they get the places of questions."""
        assert sequences.questions is not None
        return super().training_mask(sequences) | {"linear_attention": sequences.questions}

    def question_mask(self, *groups: Any) -> Any:
        """See `Backbone`. Gated DeltaNet layers process one question at a time."""
        return {"full_attention": super().question_mask(*groups), "linear_attention": None}

    def step_mask(self, *groups: Any) -> Any:
        return self.question_mask(*groups) | {"linear_attention": ROW_PER_TOKEN}

    def default_time_index(self) -> TimeIndex:
        return SpanIndex()


# ---- A tiny model with random weights, see `TinyQwenVL` --------------------------------------------------------------

CHAT_TEMPLATE = Path(__file__).with_name("qwen3_5.jinja")
FULL_ATTENTION_INTERVAL = 4  # every fourth layer, as in the released models
SHORTEST_STEP, LONGEST_STEP = 1e-3, 1e-1  # range of the decay's step at the start of training


def tiny_processor() -> Qwen3VLProcessor:
    """Return Qwen3-VL's tiny processor, which Qwen3.5 shares, with chats in the released template's format."""
    return tiny_qwen3_vl_processor(CHAT_TEMPLATE)


def tiny_preprocessor() -> Qwen35Preprocessor:
    """Return the tiny processor with the zoo's interface."""
    return Qwen35Preprocessor(tiny_processor())


class TinyQwen35(TinyQwenVL):
    """A tiny Qwen3.5 with random weights, see `TinyQwenVL`.

    The last layer has full attention, and so has every fourth one before it. Heads of full attention have four times
    hidden_size / heads channels, of which RoPE rotates one quarter. Heads of Gated DeltaNet have hidden_size / heads
    channels: `heads` for values, and `key_value_heads` for queries and keys.
    """

    stock_class, backbone_class = Qwen3_5ForConditionalGeneration, Qwen35Backbone

    def own_settings(
        self, pairs: int, text: Mapping[str, Any], vision_layers: int
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        # close to the released models' split (11 of 32 time, 11 height, 10 width), in multiples of four
        rope = dict(
            rope_type="default",
            rope_theta=1e7,
            partial_rotary_factor=0.25,
            mrope_section=[pairs // 2, pairs // 4, pairs // 4],
            mrope_interleaved=True,
        )
        layers = text["num_hidden_layers"]
        is_full = [(layers - 1 - layer) % FULL_ATTENTION_INTERVAL == 0 for layer in range(layers)]
        own = dict(
            rope_parameters=rope,
            head_dim=8 * pairs,
            linear_key_head_dim=2 * pairs,
            linear_value_head_dim=2 * pairs,
            linear_num_key_heads=text["num_key_value_heads"],
            linear_num_value_heads=text["num_attention_heads"],
            layer_types=["full_attention" if full else "linear_attention" for full in is_full],
        )
        return own, dict(num_position_embeddings=64)

    def processor(self) -> Qwen3VLProcessor:
        return tiny_processor()

    def stock_model(self) -> Any:
        model = super().stock_model()
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            torch.manual_seed(self.seed)
            for layer in model.model.language_model.layers:
                if layer.block_type == "linear_attention":
                    layer.linear_attn.dt_bias.copy_(_decay_bias(layer.linear_attn.dt_bias))
        return model


def _decay_bias(bias: Tensor) -> Tensor:
    """Draw biases of the decay's step so that their softplus is log-uniform, as Mamba and flash-linear-attention do.

    transformers initializes them with 1, because it expects released weights. A model trained from that forgets a video
    within a few tokens.
    """
    step = torch.empty(bias.shape).uniform_(math.log(SHORTEST_STEP), math.log(LONGEST_STEP)).exp()
    return step + (-torch.expm1(-step)).log()
