"""Qwen2.5-VL's vision tower, the same numbers in less time: patches as one product, windows in batches by length.

The stock one puts each patch through a Conv3d of its own size, which is several times as slow as the product that it
amounts to, backward above all; and it calls attention once a window.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import (
    Qwen2_5_VisionPatchEmbed,
    Qwen2_5_VLVisionAttention,
    apply_rotary_pos_emb_vision,
    eager_attention_forward,
)
from transformers.utils.generic import is_flash_attention_requested


class WindowAttention(Qwen2_5_VLVisionAttention):
    """Qwen2.5-VL's vision attention, the same numbers: a batch for each length of window, of four at most an image.

    A layer of the tower attends within windows or within frames; a batch of 32 tiny videos has hundreds of them. With
    flash-attention, which knows lengths, the stock forward runs.
    """

    def forward(
        self,
        hidden_states: Float[Tensor, "N D"],
        cu_seqlens: Int[Tensor, " windows_and_one"],
        position_embeddings: tuple[Float[Tensor, "N d"], Float[Tensor, "N d"]] | None = None,
        max_seqlen: int | None = None,
        **kwargs: Any,
    ) -> Float[Tensor, "N D"]:
        """As the stock forward; `cu_seqlens` says where each window begins, and at last where all end."""
        if is_flash_attention_requested(self.config):
            return super().forward(hidden_states, cu_seqlens, position_embeddings, max_seqlen, **kwargs)
        assert position_embeddings is not None  # the tower gives them
        order, shapes = windows_by_length(cu_seqlens.diff())
        cos, sin = position_embeddings
        if order is not None:
            hidden_states, cos, sin = hidden_states[order], cos[order], sin[order]
        q, k, v = self.qkv(hidden_states).unflatten(-1, (3, self.num_heads, -1)).unbind(1)
        q, k = apply_rotary_pos_emb_vision(q, k, cos, sin)

        attention = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, eager_attention_forward)
        tokens = [windows * length for windows, length in shapes]
        mixed = [
            attention(
                self,
                *(each.unflatten(0, shape).transpose(1, 2) for each in of_length),
                attention_mask=None,
                scaling=self.scaling,
                dropout=self.attention_dropout if self.training else 0.0,
                is_causal=False,
                **kwargs,
            )[0].flatten(0, 1)
            for shape, of_length in zip(shapes, zip(*(x.split(tokens) for x in (q, k, v)), strict=True), strict=True)
        ]
        output = self.proj((mixed[0] if len(mixed) == 1 else torch.cat(mixed)).flatten(1))
        return output if order is None else torch.empty_like(output).index_copy(0, order, output)


def windows_by_length(lengths: Int[Tensor, " windows"]) -> tuple[Int[Tensor, " N"] | None, list[tuple[int, int]]]:
    """The tokens in an order that puts windows of one length side by side, and (windows, length) of each length.

    The order is None where all have one length.
    """
    sizes, counts = lengths.unique(return_counts=True)  # in ascending order, as the sort below has them
    shapes = list(zip(counts.tolist(), sizes.tolist(), strict=True))
    if len(shapes) == 1:
        return None, shapes
    return lengths.repeat_interleave(lengths).argsort(stable=True), shapes


class PatchProduct(Qwen2_5_VisionPatchEmbed):
    """The patch embedding as a product with the convolution's weights: a patch is as large as the kernel."""

    def forward(self, hidden_states: Float[Tensor, "N pixels"]) -> Float[Tensor, "N D"]:
        weight = self.proj.weight.flatten(1)
        return F.linear(hidden_states.to(weight.dtype), weight)


def install_fast_vision(tower: nn.Module) -> None:
    """Gives the tower's patch embedding and attentions the classes of this file, in place; names and weights stay."""
    for module in tower.modules():
        if isinstance(module, Qwen2_5_VLVisionAttention):
            module.__class__ = WindowAttention
        elif isinstance(module, Qwen2_5_VisionPatchEmbed):
            module.__class__ = PatchProduct
