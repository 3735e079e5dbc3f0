"""A 4 x 4 matrix a token on some channels of queries, keys, values and outputs."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from zoo.encodings.base import EncodedCameras
from zoo.precision import full_precision

TOKENS_AT_ONCE = 256


class ChannelBlock:
    """Groups of four neighbouring channels: `width` channels from `start` on in each of `parts` equal parts of a head.

    With two parts the groups stand in pairs, (c, c + 1, c + 2, c + 3) and the same plus D/2: with one matrix for both
    that is P x I_2 on four of RoPE's pairs. Channels that others appended to a head are left alone.
    """

    def __init__(self, head_dim: int, start: int, width: int, parts: int = 1) -> None:
        self.head_dim, self.start, self.width, self.parts = head_dim, start, width, parts

    def view(self, x: Shaped[Tensor, "*rest E"]) -> Shaped[Tensor, "*rest parts width"]:
        """The channels, without a copy."""
        return x[..., : self.head_dim].unflatten(-1, (self.parts, -1)).narrow(-1, self.start, self.width)


class CameraMatrices(EncodedCameras):
    """A 4 x 4 matrix a token on groups of four channels: row vectors times q, k, v and o, each optional.

    Tokens without a camera, and other channels, keep their bits; so do all under identity matrices.

    Args:
        index: the camera of each token, -1 for none.
        block: the channels.
        in_rope_frame: whether q and k are encoded after RoPE (else before).
        q, k, v, o: a matrix a camera, multiplied from the right; None leaves that term alone.
    """

    def __init__(
        self,
        index: Int[Tensor, "B L"],
        block: ChannelBlock,
        in_rope_frame: bool,
        *,
        q: Float[Tensor, "B C 4 4"] | None = None,
        k: Float[Tensor, "B C 4 4"] | None = None,
        v: Float[Tensor, "B C 4 4"] | None = None,
        o: Float[Tensor, "B C 4 4"] | None = None,
    ) -> None:
        super().__init__(index.shape[1])
        self.block = block
        self.in_rope_frame = in_rope_frame
        self.index, self.matrices = index, {"q": q, "k": k, "v": v, "o": o}
        sample, token = (index >= 0).nonzero(as_tuple=True)
        self.tokens = sample * index.shape[1] + token  # those that have a camera, in the flattened batch
        camera = index[sample, token]
        self.q, self.k, self.v, self.o = (None if m is None else m[sample, camera] for m in (q, k, v, o))

    def repeated(self, copies: int) -> CameraMatrices:
        matrices = {name: None if m is None else m.repeat_interleave(copies, 0) for name, m in self.matrices.items()}
        return CameraMatrices(self.index.repeat_interleave(copies, 0), self.block, self.in_rope_frame, **matrices)

    def before_rope(self, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        return (q, k) if self.in_rope_frame else (self._times(q, self.q), self._times(k, self.k))

    def after_rope(self, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        return (self._times(q, self.q), self._times(k, self.k)) if self.in_rope_frame else (q, k)

    def values(self, v: Tensor) -> Tensor:
        return self._times(v, self.v)

    def outputs(self, o: Tensor) -> Tensor:
        return self._times(o, self.o)

    def _times(
        self, x: Float[Tensor, "B L heads D"], matrices: Float[Tensor, "N 4 4"] | None
    ) -> Float[Tensor, "B L heads D"]:
        return x if matrices is None else _Times.apply(x, matrices, self.tokens, self.block)


class _Times(torch.autograd.Function):
    """x with the groups of four channels of some tokens multiplied by matrices.

    A function of its own because the gradient is the same map, with the matrices transposed: one copy of x,
    and what changes written into it, either way.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, matrices: Tensor, tokens: Tensor, block: ChannelBlock) -> Tensor:
        ctx.save_for_backward(x if matrices.requires_grad else None, matrices, tokens)
        ctx.block = block
        out = x.clone(memory_format=torch.contiguous_format)
        source, target = (block.view(each).flatten(0, 1) for each in (x, out))
        # on a CPU new memory costs more than the product: a few tokens at a time share theirs
        step = len(tokens) if x.is_cuda else TOKENS_AT_ONCE
        # autocast would take the product to half precision, and the poses with it
        with full_precision(x.device):
            for some, of_some in zip(tokens.split(step), matrices.split(step), strict=True):
                turned = _groups(source, some).to(matrices.dtype) @ of_some
                target[some] = turned.to(x.dtype).view(len(some), *target.shape[1:])
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor | None, None, None]:
        x, matrices, tokens = ctx.saved_tensors
        grad_matrices = None
        if x is not None:
            groups, grad = (_groups(ctx.block.view(each).flatten(0, 1), tokens) for each in (x, grads[0]))
            grad_matrices = groups.to(matrices.dtype).mT @ grad.to(matrices.dtype)
        return _Times.apply(grads[0], matrices.mT, tokens, ctx.block), grad_matrices, None, None


def _groups(channels: Float[Tensor, "BL heads parts width"], tokens: Int[Tensor, " N"]) -> Float[Tensor, "N groups 4"]:
    return channels[tokens].flatten(1).unflatten(1, (-1, 4))
