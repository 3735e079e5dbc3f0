"""The camera hooks in the decoder's attention: before and after RoPE, on v, around the attention, on the output."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from torch import Tensor, nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

# Qwen3-VL's are the same two functions; Qwen3.5's eager attention is the same as well
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import apply_rotary_pos_emb, eager_attention_forward

from zoo.encodings.base import QK, EncodedCameras
from zoo.errors import InputError
from zoo.values import check_shape

FLASH_CHANNELS = 256  # of a head in FlashAttention 2, at most


class CameraAttention(nn.Module):
    """A decoder attention of transformers with a `camera_encoding`; without one, the stock forward runs.

    A backbone derives a class from this one and its stock attention, and installs it by `replace_classes`. The encoding
    is a keyword argument of the model's forward, which passes unknown arguments to the layers, also under gradient
    checkpointing. Keys and values enter the KV cache encoded, so later steps, which hold text only, need no encoding.
    """

    config: Any
    layer_idx: Any
    q_proj: Any
    k_proj: Any
    v_proj: Any
    o_proj: Any

    apply_rope: Callable[..., QK] = staticmethod(apply_rotary_pos_emb)

    def project_queries(self, hidden_states: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return queries, and the logits of a gate on the output where the stock attention has one."""
        return self.q_proj(hidden_states), None

    def normalize_heads(self, q: Tensor, k: Tensor) -> QK:
        """Normalize queries and keys per head before the hooks, where the stock attention does."""
        return q, k

    def forward(  # type: ignore[override]
        self, hidden_states: Tensor, camera_encoding: EncodedCameras | None = None, **kwargs: Any
    ) -> tuple[Tensor, Tensor | None]:
        """Run the stock forward with the encoding's five hooks.

        Args:
            hidden_states: (B, L, width).
            camera_encoding: Encoding of exactly these tokens, from `CameraEncoding.encode`; None changes nothing.
            **kwargs: Other arguments of the stock forward, all by name as the decoder layer passes them.

        Raises:
            ValueError: The encoding has another number of tokens.
            InputError: It appends more channels than the attention backend takes.
        """
        if camera_encoding is not None:
            check_num_tokens(camera_encoding, hidden_states)
            camera_encoding = camera_encoding.at_layer(self.layer_idx, hidden_states, kwargs["position_embeddings"])
        if camera_encoding is None:
            return super().forward(hidden_states, **kwargs)
        names = ("attention_mask", "position_ids", "cache", "position_embeddings")
        mask, position_ids, cache, position_embeddings = (kwargs.pop(name, None) for name in names)
        heads = (*hidden_states.shape[:2], -1, self.head_dim)
        q, gate = self.project_queries(hidden_states)
        q, k = q.view(heads), self.k_proj(hidden_states).view(heads)
        v = self.v_proj(hidden_states).view(heads)
        sizes = q.shape, k.shape, v.shape
        v = camera_encoding.transform_values(v).transpose(1, 2)

        q, k = camera_encoding.before_rope(*self.normalize_heads(q, k))
        check_shape(camera_encoding, "queries before RoPE (B, L, H, D)", q, *sizes[0])
        check_shape(camera_encoding, "keys before RoPE (B, L, G, D)", k, *sizes[1])
        q, k = self.apply_rope(q.transpose(1, 2), k.transpose(1, 2), *position_embeddings)
        q, k = camera_encoding.after_rope(q.transpose(1, 2), k.transpose(1, 2))
        check_shape(camera_encoding, "queries (B, L, H, E)", q, *sizes[0][:3], None)
        check_shape(camera_encoding, "keys (B, L, G, E)", k, *sizes[1][:3], q.shape[3])
        check_head_channels(self.config._attn_implementation, q.shape[3])
        q, k = q.transpose(1, 2), k.transpose(1, 2)

        if cache is not None:
            k, v = cache.update(k, v, self.layer_idx, kwargs=kwargs)
        implementation = self.config._attn_implementation
        attention = partial(
            ALL_ATTENTION_FUNCTIONS.get_interface(implementation, eager_attention_forward),
            self,
            dropout=self.attention_dropout if self.training else 0.0,
            scaling=self.scaling,
            sliding_window=getattr(self, "sliding_window", None),
            position_ids=position_ids,
            **kwargs,
        )
        output, weights = camera_encoding.attend(attention, q, k, v, mask)
        output = camera_encoding.transform_outputs(output)
        check_shape(camera_encoding, "outputs (B, L, H, D)", output, *sizes[0])
        output = output.reshape(*hidden_states.shape[:2], -1)
        if gate is not None:
            output = output * gate.sigmoid()
        return self.o_proj(output), weights


def check_num_tokens(encoding: EncodedCameras, hidden_states: Tensor) -> None:
    """Raise ValueError if an encoding is of another number of tokens than (B, L, width)."""
    if encoding.num_tokens not in (None, hidden_states.shape[1]):
        raise ValueError(
            f"the camera encoding is of {encoding.num_tokens} tokens, not {hidden_states.shape[1]}: "
            "take its `for_decode_step()` for the steps of an answer"
        )


def check_head_channels(attention: str, channels: int) -> None:
    """Raise InputError if heads, with the channels that an encoding appends, are too wide for FlashAttention 2."""
    if attention == "flash_attention_2" and channels > FLASH_CHANNELS:
        raise InputError(
            f"the camera encoding makes heads of {channels} channels, and flash_attention_2 takes {FLASH_CHANNELS} at "
            "most: set --model.backbone.attn_implementation sdpa"
        )


def replace_classes(module: nn.Module, classes: Mapping[type, Any]) -> None:
    """Give the submodules of these classes another class, in place; names and weights stay."""
    for each in module.modules():
        each.__class__ = classes.get(type(each), type(each))
