"""A faster vision tower for Qwen2.5-VL with the same results, bit for bit with SDPA.

Its patch embedding is a Conv3d with one kernel position; on a CPU, PyTorch's gradient of it takes several times as long
as that of the equivalent matrix product.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VisionPatchEmbed, Qwen2_5_VLVisionAttention

from zoo.backbones.attention import replace_classes
from zoo.backbones.vision_attention import SegmentAttention


class WindowAttention(SegmentAttention, Qwen2_5_VLVisionAttention):
    """Qwen2.5-VL's vision attention, within windows or within frames."""


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
