"""Groups of four head channels, and their product with 4 x 4 matrices, written into an existing tensor."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

WIDTH = 32  # channels multiplied at once, by a block-diagonal matrix: matrix libraries are slow for four
FEW_ROWS = 256  # with fewer rows per matrix, bmm into a strided output falls back to one product after another


class ChannelBlock:
    """Groups of four adjacent head channels: `width` channels from `start` in each of `parts` equal parts of a head.

    With two parts, channels c ... c + 3 and c + D/2 ... c + D/2 + 3 share a matrix P, which is P x I_2 on four of
    RoPE's pairs. Channels appended by another encoding are not included.
    """

    def __init__(self, head_dim: int, start: int, width: int, parts: int = 1) -> None:
        self.head_dim, self.start, self.width, self.parts = head_dim, start, width, parts

    @property
    def slices(self) -> list[slice]:
        """The channels as slices of at most `WIDTH` channels, whole groups of four each."""
        firsts = [self.start + part * self.head_dim // self.parts for part in range(self.parts)]
        within = [(c, min(c + WIDTH, self.width)) for c in range(0, self.width, WIDTH)]
        return [slice(first + start, first + stop) for first in firsts for start, stop in within]

    def block_diagonal(self, matrices: Float[Tensor, "n 4 4"]) -> Float[Tensor, "n w w"]:
        """Repeats each matrix along the diagonal of a larger one, as wide as the widest slice."""
        width = min(WIDTH, self.width)
        groups = torch.eye(width // 4, dtype=matrices.dtype, device=matrices.device)
        # an elementwise product: autocast would round a matrix product
        return (groups[:, None, :, None] * matrices[:, None, :, None, :]).reshape(-1, width, width)


def multiply(
    source: Float[Tensor, "N heads E"],
    target: Float[Tensor, "N heads E"],
    channels: Sequence[slice],
    matrices: Float[Tensor, "n w w"],
) -> None:
    """Multiplies row vectors by matrices, in the matrices' dtype, and writes some channels of `target`.

    Args:
        source: tokens; each matrix applies to N / n consecutive ones.
        target: contiguous, of the same shape.
        channels: see `ChannelBlock.slices`.
        matrices: from `ChannelBlock.block_diagonal`.
    """
    rows = _rows_per_matrix(source, matrices)
    written = target.view(rows.shape)
    for channel_slice in channels:
        width = channel_slice.stop - channel_slice.start
        output = written[..., channel_slice]
        factors = rows[..., channel_slice].to(matrices.dtype), matrices[:, :width, :width]
        if output.dtype == matrices.dtype and rows.shape[1] >= FEW_ROWS:
            torch.bmm(*factors, out=output)
        else:
            output.copy_(torch.bmm(*factors))


def multiply_gradient(
    source: Float[Tensor, "N heads E"],
    grad: Float[Tensor, "N heads E"],
    channels: Sequence[slice],
    matrices: Float[Tensor, "n w w"],
) -> Float[Tensor, "n w w"]:
    """Computes the gradient of the matrices of `multiply` from the gradient of its target."""
    rows, grads = (_rows_per_matrix(x, matrices).to(matrices.dtype) for x in (source, grad))
    total = torch.zeros_like(matrices)
    for channel_slice in channels:
        width = channel_slice.stop - channel_slice.start
        total[:, :width, :width] += rows[..., channel_slice].mT @ grads[..., channel_slice]
    return total


def _rows_per_matrix(x: Float[Tensor, "N heads E"], matrices: Float[Tensor, "n w w"]) -> Float[Tensor, "n rows E"]:
    # n may be 0
    return x.reshape(len(matrices), len(x) // max(1, len(matrices)) * x.shape[1], x.shape[2])
