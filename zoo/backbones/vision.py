"""Parts of the Qwen-VL vision encoders: two faster ones, and one for mixed dtypes. On a CPU results are unchanged."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import apply_rotary_pos_emb_vision, eager_attention_forward
from transformers.utils.generic import is_flash_attention_requested

from zoo.sequences.loaded_scene import Segments

# ---- The patch embedding as a matrix product -------------------------------------------------------------------------


class PatchEmbedding(nn.Module):
    """A patch embedding of transformers. Its Conv3d has one kernel position, so it is a matrix product.

    A backbone derives a class from this one and its original patch embedding. On a GPU, PyTorch's Conv3d in bfloat16 is
    slower than the matrix product by orders of magnitude. On a CPU the convolution is kept, so that results are the
    original ones. Its gradient is computed by a matrix product, which takes a fraction of the time.
    """

    proj: Any

    def forward(self, hidden_states: Float[Tensor, "N pixels"]) -> Float[Tensor, "N D"]:
        """Embed cut patches."""
        return self.convolve(hidden_states) if hidden_states.device.type == "cpu" else self.multiply(hidden_states)

    def multiply(self, patches: Float[Tensor, "N pixels"]) -> Float[Tensor, "N D"]:
        """Embed patches by a matrix product."""
        weight = self.proj.weight
        return F.linear(patches.to(weight.dtype), weight.flatten(1), self.proj.bias)

    def convolve(self, patches: Float[Tensor, "N pixels"]) -> Float[Tensor, "N D"]:
        """Embed patches by the convolution, on a CPU."""
        weight, bias = self.proj.weight, self.proj.bias
        # the dtype of the convolution under autocast, which does not apply to the backward pass
        dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else weight.dtype
        bias = None if bias is None else bias.to(dtype)
        return _PatchConvolution.apply(patches.to(dtype), weight.to(dtype), bias)


class _PatchConvolution(torch.autograd.Function):
    """A convolution on patches of the kernel's size (D, 3, steps, side, side), with a matrix product as backward."""

    @staticmethod
    def forward(ctx: Any, patches: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(patches, weight)
        return F.conv3d(patches.view(-1, *weight.shape[1:]), weight, bias, stride=weight.shape[2:]).flatten(1)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        patches, weight = ctx.saved_tensors
        of_patches, of_weight, of_bias = ctx.needs_input_grad
        return (
            grads[0] @ weight.flatten(1) if of_patches else None,
            (grads[0].mT @ patches).view_as(weight) if of_weight else None,
            grads[0].sum(0) if of_bias else None,
        )


# ---- A trained merger behind a frozen encoder -----------------------------------------------------------------------


class VisionMerger(nn.Module):
    """A merger of transformers that computes in the dtype of its weights: float32 if they are trained.

    A backbone derives a class from this one and its original merger. The encoder before it may be frozen in bfloat16.
    """

    norm: Any

    def forward(self, hidden_states: Float[Tensor, "N D"]) -> Float[Tensor, "M C"]:
        """Compute the original forward."""
        merged: Tensor = super().forward(hidden_states.to(self.norm.weight.dtype))
        return merged


# ---- Attention in one batch per length of segment --------------------------------------------------------------------

# The original encoders call attention once per window or frame, which is hundreds of times per layer for a batch of
# tiny videos. Qwen3-VL's functions are the same.


class SegmentAttention(nn.Module):
    """A vision attention of transformers with one call per length of segment. An image has at most four window lengths.

    A backbone derives a class from this one and its original attention. FlashAttention handles lengths itself, so the
    original forward runs for it.
    """

    config: Any
    qkv: Any
    proj: Any
    num_heads: int
    scaling: float
    attention_dropout: float

    def forward(
        self,
        hidden_states: Float[Tensor, "N D"],
        cu_seqlens: Segments | Int[Tensor, " runs_and_one"],
        position_embeddings: tuple[Float[Tensor, "N d"], Float[Tensor, "N d"]] | None = None,
        max_seqlen: int | None = None,
        **kwargs: Any,
    ) -> Float[Tensor, "N D"]:
        """Compute the original forward.

        Args:
            hidden_states: Hidden states of all patches.
            cu_seqlens: The segments, computed by `VisionRules` on the host. A tensor of boundaries, as the original
                model passes it, makes the host wait for the GPU in each layer.
            position_embeddings: Cosine and sine of each patch.
            max_seqlen: Maximum length, for FlashAttention.
            **kwargs: Arguments of the attention backend.
        """
        if is_flash_attention_requested(self.config):
            boundaries = cu_seqlens.boundaries if isinstance(cu_seqlens, Segments) else cu_seqlens
            output: Tensor = super().forward(hidden_states, boundaries, position_embeddings, max_seqlen, **kwargs)
            return output
        runs = cu_seqlens
        if not isinstance(runs, Segments):
            runs = Segments(runs.cpu()).to(runs.device)
        assert position_embeddings is not None  # the vision encoder passes them
        cos, sin = position_embeddings
        if runs.order is not None:
            hidden_states, cos, sin = hidden_states[runs.order], cos[runs.order], sin[runs.order]
        q, k, v = self.qkv(hidden_states).unflatten(-1, (3, self.num_heads, -1)).unbind(1)
        q, k = apply_rotary_pos_emb_vision(q, k, cos, sin)

        attention = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, eager_attention_forward)
        tokens = [count * length for count, length in runs.shapes]
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
            for shape, of_length in zip(
                runs.shapes, zip(*(x.split(tokens) for x in (q, k, v)), strict=True), strict=True
            )
        ]
        output = self.proj((mixed[0] if len(mixed) == 1 else torch.cat(mixed)).flatten(1))
        return output if runs.order is None else torch.empty_like(output).index_copy(0, runs.order, output)
