"""Products of 4 x 4 matrices, one per camera, with some channels of the tokens' q, k, v and o."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import groupby
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from zoo.encodings.channels import ChannelBlock, multiply, multiply_gradient
from zoo.encodings.encoded import QK, EncodedCameras
from zoo.precision import highest_matmul_precision

SHORT = 128  # tokens: shorter runs are gathered, which costs a copy but saves one call per run


class CameraMatrices(EncodedCameras):
    """Multiplies groups of four channels, as row vectors, by the 4 x 4 matrix of the token's camera.

    Tokens without a camera and other channels are unchanged, bit for bit; so is everything under identity matrices.

    Args:
        index: the camera of each token, -1 for none.
        block: the channels.
        on_rotated: whether q and k are transformed after RoPE instead of before.
        matrices: for q, k, v and o, or some of them: one matrix per camera, multiplied from the right.
    """

    def __init__(
        self, index: Int[Tensor, "B L"], block: ChannelBlock, on_rotated: bool, **matrices: Float[Tensor, "_B _C 4 4"]
    ) -> None:
        super().__init__(index.shape[1])
        self.index, self.block, self.on_rotated, self.matrices = index, block, on_rotated, matrices
        self.tokens, cameras = _runs_of_tokens(index)
        self.run_matrices = {
            term: [block.block_diagonal(m[camera]) for camera in cameras] for term, m in matrices.items()
        }

    def repeat_interleave(self, copies: int) -> CameraMatrices:
        matrices = {term: m.repeat_interleave(copies, 0) for term, m in self.matrices.items()}
        return CameraMatrices(self.index.repeat_interleave(copies, 0), self.block, self.on_rotated, **matrices)

    def before_rope(self, q: Tensor, k: Tensor) -> QK:
        return (q, k) if self.on_rotated else (self._multiply(q, "q"), self._multiply(k, "k"))

    def after_rope(self, q: Tensor, k: Tensor) -> QK:
        return (self._multiply(q, "q"), self._multiply(k, "k")) if self.on_rotated else (q, k)

    def transform_values(self, v: Tensor) -> Tensor:
        return self._multiply(v, "v")

    def transform_outputs(self, o: Tensor) -> Tensor:
        return self._multiply(o, "o")

    def _multiply(self, x: Float[Tensor, "B L heads D"], term: str) -> Float[Tensor, "B L heads D"]:
        matrices = self.run_matrices.get(term)
        return _MultiplyTokens.apply(x, self.block.slices, self.tokens, *matrices) if matrices else x


def camera_runs(index: Int[Tensor, "B L"]) -> Iterator[slice]:
    """Finds runs of adjacent tokens with a camera in the flattened batch.

    Args:
        index: the camera of each token, -1 for none.

    Yields:
        Slices of tokens. The step of a slice divides it into equal parts of one camera each.
    """
    if not index.numel():
        return
    sample = torch.arange(len(index), device=index.device)[:, None]
    camera = torch.where(index >= 0, sample * (index.max() + 1) + index, -1)
    counts = zip(*(x.tolist() for x in camera.flatten().unique_consecutive(return_counts=True)), strict=True)
    start = 0
    for has_camera, group in groupby(counts, key=lambda run: run[0] >= 0):
        lengths = [length for _, length in group]
        if has_camera:
            yield slice(start, start + sum(lengths), math.gcd(*lengths))
        start += sum(lengths)


def _runs_of_tokens(index: Int[Tensor, "B L"]) -> tuple[list[slice | Tensor], list[tuple[Tensor, Tensor]]]:
    """Returns the tokens to multiply in one call each, and the (sample, camera) of their equal parts."""
    runs = list(camera_runs(index))
    step = math.gcd(*(run.step for run in runs))
    tokens: list[slice | Tensor] = [slice(run.start, run.stop) for run in runs]
    firsts = [list(range(run.start, run.stop, run.step)) for run in runs]
    if len(runs) > 1 and sum(run.stop - run.start for run in runs) < SHORT * len(runs):
        every = [token for run in runs for token in range(run.start, run.stop)]
        tokens, firsts = [torch.tensor(every, device=index.device)], [every[::step]]
    first_tokens = [torch.tensor(each, device=index.device) for each in firsts]
    return tokens, [(first // index.shape[1], index.flatten()[first]) for first in first_tokens]


class _MultiplyTokens(torch.autograd.Function):
    """Multiplies some channels of some tokens by matrices.

    Hand-written for speed in every decoder layer: for 1024 tokens with 16 heads of 128 channels, forward and backward
    take 8 to 12 ms on one CPU thread, and 17 to 18 ms with plain operators (slices, bmm and cat), which allocate more.
    benchmarks/attention.md compares whole encodings with plain attention.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, channels: list[slice], tokens: list[slice | Tensor], *matrices: Tensor) -> Tensor:
        ctx.save_for_backward(x if any(m.requires_grad for m in matrices) else None, *matrices)
        ctx.channels, ctx.tokens = channels, tokens
        out = x.clone(memory_format=torch.contiguous_format)
        source, target = x.flatten(0, 1), out.flatten(0, 1)
        with highest_matmul_precision(x.device):
            for run, run_matrices in zip(tokens, matrices, strict=True):
                written = target[run]  # a view for a slice, a copy for a tensor of numbers
                multiply(source[run], written, channels, run_matrices)
                if not isinstance(run, slice):
                    target[run] = written
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, *matrices = ctx.saved_tensors
        matrix_grads: list[Tensor | None] = [None] * len(matrices)
        if x is not None:
            source, grad = x.flatten(0, 1), grads[0].flatten(0, 1)
            matrix_grads = [
                multiply_gradient(source[run], grad[run], ctx.channels, run_matrices)
                for run, run_matrices in zip(ctx.tokens, matrices, strict=True)
            ]
        grad_x = _MultiplyTokens.apply(grads[0], ctx.channels, ctx.tokens, *(m.mT for m in matrices))
        return grad_x, None, None, *matrix_grads
