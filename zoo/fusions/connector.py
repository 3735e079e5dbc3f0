"""Spatial-MLLM's connector, in the official order of operations."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn


class RMSNorm(nn.Module):
    """RMSNorm in the published connector's order of operations, bit for bit; `nn.RMSNorm` rounds differently.

    Args:
        channels: Width of the input.
        eps: Added to the mean square.
    """

    def __init__(self, channels: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.eps = eps

    def forward(self, x: Float[Tensor, "*rest channels"]) -> Float[Tensor, "*rest channels"]:
        exact = x.float()
        exact = exact * torch.rsqrt(exact.square().mean(-1, keepdim=True) + self.eps)
        return self.weight * exact.to(x.dtype)


class Connector(nn.Module):
    """RMSNorm, linear, GELU, linear: Spatial-MLLM's connector (arXiv 2505.23747, section 3.2), with its official names.

    Args:
        inputs: Channels of the input.
        hidden: Channels of the hidden layer.
        outputs: Channels of the output.
        zero: Initialize the output to zero; only the last layer is zero, or no parameter would get a gradient.
    """

    def __init__(self, inputs: int, hidden: int, outputs: int, zero: bool = False) -> None:
        super().__init__()
        self.ln_q = RMSNorm(inputs, eps=1e-6)
        self.mlp = nn.Sequential(nn.Linear(inputs, hidden), nn.GELU(), nn.Linear(hidden, outputs))
        if zero:
            for parameter in self.mlp[2].parameters():
                nn.init.zeros_(parameter)

    def forward(self, x: Float[Tensor, "*rest inputs"]) -> Float[Tensor, "*rest outputs"]:
        return self.mlp(self.ln_q(x))
