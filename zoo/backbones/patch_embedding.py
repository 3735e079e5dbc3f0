"""The patch embedding of the Qwen-VL vision towers as a matrix product, with the stock results bit for bit on a CPU."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn


class PatchEmbedding(nn.Module):
    """A patch embedding of transformers, whose Conv3d has one kernel position and so is a matrix product.

    A backbone derives a class from this one and its stock patch embedding. On a GPU PyTorch's Conv3d in bfloat16 is
    slower than the product by orders of magnitude. On a CPU the convolution stays, whose results are stock bit for bit;
    its gradient is the product's, which takes a fraction of the time.
    """

    proj: Any

    def forward(self, hidden_states: Float[Tensor, "N pixels"]) -> Float[Tensor, "N D"]:
        """Embed patches that have been cut."""
        return self.convolve(hidden_states) if hidden_states.device.type == "cpu" else self.multiply(hidden_states)

    def multiply(self, patches: Float[Tensor, "N pixels"]) -> Float[Tensor, "N D"]:
        """Embed patches by a matrix product."""
        weight = self.proj.weight
        return F.linear(patches.to(weight.dtype), weight.flatten(1), self.proj.bias)

    def convolve(self, patches: Float[Tensor, "N pixels"]) -> Float[Tensor, "N D"]:
        """Embed patches by the convolution, on a CPU."""
        weight, bias = self.proj.weight, self.proj.bias
        # the dtype of the convolution under autocast, which does not cover the backward pass
        dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else weight.dtype
        bias = None if bias is None else bias.to(dtype)
        return _PatchConvolution.apply(patches.to(dtype), weight.to(dtype), bias)


class _PatchConvolution(torch.autograd.Function):
    """A convolution on patches of the kernel's size (D, 3, steps, side, side); backward is a matrix product."""

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
