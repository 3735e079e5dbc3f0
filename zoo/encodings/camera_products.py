"""Products of tokens with the matrices of their cameras, written into one copy of the tokens, and their gradients."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from zoo.precision import exact_bmm, highest_matmul_precision

GROUP = 4  # channels per matrix


class ChannelPart(NamedTuple):
    """Some channels of a block.

    Attributes:
        channels: As a slice or as a tensor of numbers.
        width: Channels that are multiplied at once; it divides their number.
    """

    channels: slice | Tensor
    width: int


def block_diagonal(matrices: Float[Tensor, "n 4 4"], parts: Sequence[ChannelPart]) -> Float[Tensor, "n w w"]:
    """Repeat each matrix along the diagonal of a larger one, as wide as the widest part."""
    width = max(part.width for part in parts)
    groups = torch.eye(width // GROUP, dtype=matrices.dtype, device=matrices.device)
    # an elementwise product: autocast would round a matrix product
    return (groups[:, None, :, None] * matrices[:, None, :, None, :]).reshape(-1, width, width)


class CameraProducts:
    """Products of some channels of some tokens with matrices, each of which is that of equally many adjacent tokens.

    Args:
        tokens: The tokens of a flattened batch, see `CameraRuns.places`.
        parts: The channels.
    """

    def __init__(self, tokens: Sequence[slice | Tensor], parts: Sequence[ChannelPart]) -> None:
        self.tokens, self.parts = tokens, parts

    def write(self, x: Float[Tensor, "B L heads E"], out: Tensor, matrices: Sequence[Tensor]) -> None:
        """Write what changes into a contiguous copy.

        Args:
            x: The tokens.
            out: The same.
            matrices: For each of the `tokens`: of its parts, in the form of `block_diagonal`.
        """
        every = out.flatten(0, 1)
        for run, of_run in zip(self.tokens, matrices, strict=True):
            rows = every[run]  # a view for a slice, a copy for numbers
            for channels, width in self.parts:
                read = rows[..., channels]
                factors = read.to(of_run.dtype).reshape(len(of_run), -1, width), of_run[:, :width, :width]
                product = exact_bmm(*factors).view(read.shape)
                rows[..., channels] = product if isinstance(channels, slice) else product.to(out.dtype)
            if not isinstance(run, slice):
                every[run] = rows

    def transposed(self) -> CameraProducts:
        """Return the map of gradients, whose matrices are transposed."""
        return self

    def matrix_grads(self, x: Tensor, grad: Tensor, matrices: Sequence[Tensor]) -> list[Tensor]:
        """Compute the gradients of the matrices from that of the result."""
        return [
            self._matrix_grad(x.flatten(0, 1)[run], grad.flatten(0, 1)[run], of_run)
            for run, of_run in zip(self.tokens, matrices, strict=True)
        ]

    def _matrix_grad(self, x: Float[Tensor, "N heads E"], grad: Tensor, matrices: Tensor) -> Float[Tensor, "n w w"]:
        total = torch.zeros_like(matrices)
        for channels, width in self.parts:
            rows, grads = (each[..., channels].to(total.dtype).reshape(len(total), -1, width) for each in (x, grad))
            total[:, :width, :width] += rows.mT @ grads
        return total


def map_tokens(
    x: Float[Tensor, "B L heads E"], products: CameraProducts, matrices: Sequence[Tensor]
) -> Float[Tensor, "B L heads E"]:
    """Return tokens multiplied by matrices, see `CameraProducts`; other tokens and channels are unchanged."""
    return _MapTokens.apply(x, products, *matrices)


class _MapTokens(torch.autograd.Function):
    """Write a linear map of tokens into one copy of them.

    Hand-written for speed in every decoder layer: for 1024 tokens with 16 heads of 128 channels, forward and backward
    take 8 to 12 ms on one CPU thread, and 17 to 18 ms with plain operators (slices, bmm and cat), which allocate more.
    benchmarks/attention.md compares whole encodings with plain attention.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, products: CameraProducts, *matrices: Tensor) -> Tensor:
        ctx.save_for_backward(x if any(m.requires_grad for m in matrices) else None, *matrices)
        ctx.products = products
        out = x.clone(memory_format=torch.contiguous_format)
        with nullcontext() if torch.compiler.is_compiling() else highest_matmul_precision(x.device):
            products.write(x, out, matrices)  # by `exact_bmm`
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, *matrices = ctx.saved_tensors
        matrix_grads = [None] * len(matrices) if x is None else ctx.products.matrix_grads(x, grads[0], matrices)
        grad_x = _MapTokens.apply(grads[0], ctx.products.transposed(), *(m.mT for m in matrices))
        return grad_x, None, *matrix_grads
