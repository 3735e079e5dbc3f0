"""A faster vision tower for Qwen2.5-VL with the same results, bit for bit with SDPA.

The stock tower calls attention once per window. Its patch embedding is a Conv3d with one kernel position; on a CPU,
PyTorch's gradient of it takes several times as long as that of the equivalent matrix product.
"""

from __future__ import annotations

from functools import lru_cache
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

from zoo.backbones.attention import replace_classes


class WindowAttention(Qwen2_5_VLVisionAttention):
    """Qwen2.5-VL's vision attention in one batch per window length; an image has at most four lengths.

    A layer of the tower attends within windows or within frames; a batch of 32 tiny videos has hundreds of windows.
    FlashAttention handles lengths itself: there the stock forward runs.
    """

    def forward(
        self,
        hidden_states: Float[Tensor, "N D"],
        cu_seqlens: Int[Tensor, " windows_and_one"],
        position_embeddings: tuple[Float[Tensor, "N d"], Float[Tensor, "N d"]] | None = None,
        max_seqlen: int | None = None,
        **kwargs: Any,
    ) -> Float[Tensor, "N D"]:
        """Run as the stock forward; `cu_seqlens` are the first tokens of the windows, and the number of tokens."""
        if is_flash_attention_requested(self.config):
            return super().forward(hidden_states, cu_seqlens, position_embeddings, max_seqlen, **kwargs)
        assert position_embeddings is not None  # the tower gives them
        order, shapes = windows_by_length(cu_seqlens)
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


@lru_cache(maxsize=2)  # by identity: all layers of a forward share two tensors, and a GPU waits for each look at one
def windows_by_length(
    cu_seqlens: Int[Tensor, " windows_and_one"],
) -> tuple[Int[Tensor, " N"] | None, list[tuple[int, int]]]:
    """Return the order of tokens that sorts windows by length, and (number of windows, length) for each length.

    The order is None if all windows have one length.
    """
    lengths = cu_seqlens.diff()
    sizes, counts = lengths.unique(return_counts=True)  # in ascending order, as the sort below has them
    shapes = list(zip(counts.tolist(), sizes.tolist(), strict=True))
    if len(shapes) == 1:
        return None, shapes
    return lengths.repeat_interleave(lengths).argsort(stable=True), shapes


class PatchEmbedding(Qwen2_5_VisionPatchEmbed):
    """Qwen2.5-VL's patch embedding, bit for bit, with the gradient of the equivalent matrix product."""

    def forward(self, hidden_states: Float[Tensor, "N pixels"]) -> Float[Tensor, "N D"]:
        weight, device = self.proj.weight, hidden_states.device.type
        # the dtype of the convolution under autocast, which does not cover the backward pass
        casts = device != "meta" and torch.is_autocast_enabled(device)
        dtype = torch.get_autocast_dtype(device) if casts else weight.dtype
        return _PatchConvolution.apply(hidden_states.to(dtype), weight.to(dtype))


class _PatchConvolution(torch.autograd.Function):
    """A convolution on patches of the kernel's size (D, 3, steps, side, side); backward is a matrix product."""

    @staticmethod
    def forward(ctx: Any, patches: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(patches, weight)
        return F.conv3d(patches.view(-1, *weight.shape[1:]), weight, stride=weight.shape[2:]).flatten(1)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None]:
        patches, weight = ctx.saved_tensors
        of_patches, of_weight = ctx.needs_input_grad
        return (
            grads[0] @ weight.flatten(1) if of_patches else None,
            (grads[0].mT @ patches).view_as(weight) if of_weight else None,
        )


def install_fast_vision(tower: nn.Module) -> None:
    """Replace the classes of the tower's patch embedding and attentions, in place."""
    replace_classes(tower, {Qwen2_5_VLVisionAttention: WindowAttention, Qwen2_5_VisionPatchEmbed: PatchEmbedding})
