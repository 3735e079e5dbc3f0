"""What matrices and rotations do to the channels of a token: `multiply` by 4 x 4 matrices, `turn_pairs` by angles.

Both write into a tensor that is there. Out of plain operators each step would make one, and another to put the pieces
together, and new memory is most of what an encoding costs. The gradient of either is the same map, with the matrices
transposed or the angles negated.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

WIDTH = 32  # channels that are multiplied at once: matrix libraries are slow on four
FEW_ROWS = 256  # with fewer for each matrix there are many: bmm takes them one by one if its result has gaps


class ChannelBlock:
    """Groups of four neighboring channels: `width` channels from `start` on in each of `parts` equal parts of a head.

    With two parts the groups stand in pairs, (c, c + 1, c + 2, c + 3) and the same plus D/2: with one matrix for both
    that is P x I_2 on four of RoPE's pairs. Channels that others appended to a head are left alone.
    """

    def __init__(self, head_dim: int, start: int, width: int, parts: int = 1) -> None:
        self.head_dim, self.start, self.width, self.parts = head_dim, start, width, parts

    @property
    def slices(self) -> list[slice]:
        """The channels, whole groups of them, no more than `multiply` takes at once."""
        firsts = [self.start + part * self.head_dim // self.parts for part in range(self.parts)]
        within = [(c, min(c + WIDTH, self.width)) for c in range(0, self.width, WIDTH)]
        return [slice(first + start, first + stop) for first in firsts for start, stop in within]

    def along_diagonal(self, matrices: Float[Tensor, "n 4 4"]) -> Float[Tensor, "n w w"]:
        """Each matrix as often as `multiply` has groups at once."""
        width = min(WIDTH, self.width)
        groups = torch.eye(width // 4, dtype=matrices.dtype, device=matrices.device)
        # no matrix product, which autocast would round
        return (groups[:, None, :, None] * matrices[:, None, :, None, :]).reshape(-1, width, width)


def multiply(
    source: Float[Tensor, "N heads E"],
    target: Float[Tensor, "N heads E"],
    channels: Sequence[slice],
    matrices: Float[Tensor, "n w w"],
) -> None:
    """Writes source times matrices, in the precision of these, into some channels of target.

    Args:
        source, target: tokens, N / n neighbors for each matrix; the target is contiguous.
        channels: see `ChannelBlock.slices`.
        matrices: of row vectors, from `ChannelBlock.along_diagonal`.
    """
    rows = _rows(source, matrices)
    written = target.view(rows.shape)
    for some in channels:
        width = some.stop - some.start
        into, factors = written[..., some], (rows[..., some].to(matrices.dtype), matrices[:, :width, :width])
        if into.dtype == matrices.dtype and rows.shape[1] >= FEW_ROWS:
            torch.bmm(*factors, out=into)
        else:
            into.copy_(torch.bmm(*factors))


def multiply_gradient(
    source: Float[Tensor, "N heads E"],
    grad: Float[Tensor, "N heads E"],
    channels: Sequence[slice],
    matrices: Float[Tensor, "n w w"],
) -> Float[Tensor, "n w w"]:
    """The gradient of the matrices of `multiply`, from that of its target."""
    rows, grads = (_rows(x, matrices).to(matrices.dtype) for x in (source, grad))
    total = torch.zeros_like(matrices)
    for some in channels:
        width = some.stop - some.start
        total[:, :width, :width] += rows[..., some].mT @ grads[..., some]
    return total


def _rows(x: Float[Tensor, "N heads E"], matrices: Float[Tensor, "n w w"]) -> Float[Tensor, "n rows E"]:
    """What each matrix is for; there may be none."""
    return x.reshape(len(matrices), len(x) // max(1, len(matrices)) * x.shape[1], x.shape[2])


def turn_pairs(
    source: Float[Tensor, "*rest E"],
    target: Float[Tensor, "*rest E"],
    first: int,
    cos: Float[Tensor, "*#rest F"],
    sin: Float[Tensor, "*#rest F"],
) -> None:
    """Writes the pairs (c, c + F) turned by angles, (a cos - b sin, b cos + a sin), F channels from the first on."""
    pairs = cos.shape[-1]
    (a, b), (into_a, into_b) = ([x[..., c : c + pairs] for c in (first, first + pairs)] for x in (source, target))
    torch.mul(a, cos, out=into_a).addcmul_(b, sin, value=-1)
    torch.mul(b, cos, out=into_b).addcmul_(a, sin)
