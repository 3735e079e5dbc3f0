"""A 4 x 4 matrix a token on some channels of queries, keys, values and outputs."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import groupby
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from zoo.encodings.base import EncodedCameras
from zoo.encodings.channels import ChannelBlock, multiply, multiply_gradient
from zoo.precision import highest_matmul_precision

SHORT = 128  # tokens: stretches that are shorter are taken together, which costs a copy but no call each


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
        self.tokens, cameras = _side_by_side(index)
        self.of_tokens = {
            name: [block.along_diagonal(m[some]) for some in cameras]
            for name, m in self.matrices.items()
            if m is not None
        }

    def repeat_interleave(self, copies: int) -> CameraMatrices:
        matrices = {name: None if m is None else m.repeat_interleave(copies, 0) for name, m in self.matrices.items()}
        return CameraMatrices(self.index.repeat_interleave(copies, 0), self.block, self.in_rope_frame, **matrices)

    def before_rope(self, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        return (q, k) if self.in_rope_frame else (self._times(q, "q"), self._times(k, "k"))

    def after_rope(self, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        return (self._times(q, "q"), self._times(k, "k")) if self.in_rope_frame else (q, k)

    def values(self, v: Tensor) -> Tensor:
        return self._times(v, "v")

    def transform_outputs(self, o: Tensor) -> Tensor:
        return self._times(o, "o")

    def _times(self, x: Float[Tensor, "B L heads D"], term: str) -> Float[Tensor, "B L heads D"]:
        matrices = self.of_tokens.get(term)
        return _Multiplied.apply(x, self.block.slices, self.tokens, *matrices) if matrices else x


def stretches(index: Int[Tensor, "B L"]) -> Iterator[slice]:
    """Where tokens with a camera stand side by side, in the flattened batch.

    Args:
        index: the camera of each token, -1 for none.

    Yields:
        Slices of tokens. The step says how many of its neighbors have one camera: it divides the slice into parts
        of one camera each.
    """
    if not index.numel():
        return
    sample = torch.arange(len(index), device=index.device)[:, None]
    camera = torch.where(index >= 0, sample * (index.max() + 1) + index, -1)
    runs = zip(*(x.tolist() for x in camera.flatten().unique_consecutive(return_counts=True)), strict=True)
    start = 0
    for seen, some in groupby(runs, key=lambda run: run[0] >= 0):
        lengths = [length for _, length in some]
        if seen:
            yield slice(start, start + sum(lengths), math.gcd(*lengths))
        start += sum(lengths)


def _side_by_side(index: Int[Tensor, "B L"]) -> tuple[list[slice | Tensor], list[tuple[Tensor, Tensor]]]:
    """Which tokens of the flattened batch to take at once, and the samples and numbers of their cameras in turn."""
    found = list(stretches(index))
    step = math.gcd(*(some.step for some in found))
    tokens: list[slice | Tensor] = [slice(some.start, some.stop) for some in found]
    steps = [list(range(some.start, some.stop, some.step)) for some in found]
    if len(found) > 1 and sum(some.stop - some.start for some in found) < SHORT * len(found):
        every = [token for some in found for token in range(some.start, some.stop)]
        tokens, steps = [torch.tensor(every, device=index.device)], [every[::step]]
    firsts = [torch.tensor(each, device=index.device) for each in steps]
    return tokens, [(first // index.shape[1], index.flatten()[first]) for first in firsts]


class _Multiplied(torch.autograd.Function):
    """x with some channels of some tokens multiplied by matrices."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, channels: list[slice], tokens: list[slice | Tensor], *matrices: Tensor) -> Tensor:
        ctx.save_for_backward(x if any(m.requires_grad for m in matrices) else None, *matrices)
        ctx.channels, ctx.tokens = channels, tokens
        out = x.clone(memory_format=torch.contiguous_format)
        source, target = x.flatten(0, 1), out.flatten(0, 1)
        with highest_matmul_precision(x.device):
            for some, of_some in zip(tokens, matrices, strict=True):
                written = target[some]  # a view of a slice, else a copy
                multiply(source[some], written, channels, of_some)
                if not isinstance(some, slice):
                    target[some] = written
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, *matrices = ctx.saved_tensors
        of_matrices: list[Tensor | None] = [None] * len(matrices)
        if x is not None:
            source, grad = x.flatten(0, 1), grads[0].flatten(0, 1)
            of_matrices = [
                multiply_gradient(source[some], grad[some], ctx.channels, of_some)
                for some, of_some in zip(ctx.tokens, matrices, strict=True)
            ]
        grad_x = _Multiplied.apply(grads[0], ctx.channels, ctx.tokens, *(m.mT for m in matrices))
        return grad_x, None, None, *of_matrices
