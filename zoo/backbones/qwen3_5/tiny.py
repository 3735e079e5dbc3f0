"""A tiny random Qwen3.5, see `zoo.backbones.tiny`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import Qwen3_5ForConditionalGeneration, Qwen3VLProcessor

from zoo.backbones.qwen3_5.backbone import Qwen35Backbone, Qwen35Preprocessor
from zoo.backbones.qwen3_vl import tiny as qwen3_vl
from zoo.backbones.tiny import TinyQwenVL

CHAT_TEMPLATE = Path(__file__).parent / "tiny_chat_template.jinja"
FULL_ATTENTION_INTERVAL = 4  # every fourth layer, as in the released models
SHORTEST_STEP, LONGEST_STEP = 1e-3, 1e-1  # of the decay, at the start of a training


def tiny_processor() -> Qwen3VLProcessor:
    """Return Qwen3-VL's tiny processor, which Qwen3.5 has too, with chats as the released template writes them."""
    return qwen3_vl.tiny_processor(CHAT_TEMPLATE)


def tiny_preprocessor() -> Qwen35Preprocessor:
    """Return the tiny processor behind the zoo's interface."""
    return Qwen35Preprocessor(tiny_processor())


class TinyQwen35(TinyQwenVL):
    """Random weights, see `TinyQwenVL`; the last layer is full attention, and every fourth one before it.

    Heads of full attention have four times hidden_size / heads channels, of which RoPE rotates a quarter. Those of
    Gated DeltaNet have hidden_size / heads: `heads` of values, and `key_value_heads` of queries and keys.
    """

    stock_class, backbone_class = Qwen3_5ForConditionalGeneration, Qwen35Backbone

    def own_settings(
        self, pairs: int, text: Mapping[str, Any], vision_layers: int
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        # near the released models' split, 11 of 32 time, 11 height, 10 width, in multiples of four
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
    """Draw biases of the decay's step, softplus of which is log-uniform, as Mamba and flash-linear-attention do.

    transformers starts with 1, made for released weights: a model trained from it forgets a video within few tokens.
    """
    step = torch.empty(bias.shape).uniform_(math.log(SHORTEST_STEP), math.log(LONGEST_STEP)).exp()
    return step + (-torch.expm1(-step)).log()
