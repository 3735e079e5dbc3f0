"""Products of 4 x 4 matrices, one per camera, with some channels of the tokens' q, k, v and o."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from itertools import pairwise
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from zoo.cameras import Cameras
from zoo.cameras.token_runs import camera_runs
from zoo.encodings.encoded import QK, EncodedCameras
from zoo.precision import highest_matmul_precision

GROUP = 4  # channels per matrix
WIDTH = 32  # channels multiplied at once, by a block-diagonal matrix: matrix libraries are slow for four

ChannelRun = tuple[slice | list[int], int]  # an index of channels, and their number


class ChannelBlock:
    """Head channels in groups of four, each of which is multiplied by a 4 x 4 matrix.

    A group in the first half of a head and the same in the second share a matrix P, which is P x I_2 on four of RoPE's
    pairs. Channels appended by another encoding are not included.

    Args:
        channels: A multiple of four.
    """

    def __init__(self, channels: Sequence[int]) -> None:
        self.channels = list(channels)

    @cached_property
    def runs(self) -> list[ChannelRun]:
        """The channels as slices of at most `WIDTH` channels, whole groups each; a group of uneven steps is a list."""
        runs: list[list[int]] = []
        for i in range(0, len(self.channels), GROUP):
            group = self.channels[i : i + GROUP]
            if runs and len(runs[-1]) < WIDTH and _step(runs[-1]) and _step([*runs[-1], *group]):
                runs[-1] += group
            else:
                runs.append(group)
        steps = [_step(run) for run in runs]
        return [
            (slice(run[0], run[0] + step * len(run), step) if step else run, len(run))
            for run, step in zip(runs, steps, strict=True)
        ]

    def block_diagonal(self, matrices: Float[Tensor, "n 4 4"]) -> Float[Tensor, "n w w"]:
        """Repeat each matrix along the diagonal of a larger one, as wide as the widest run."""
        width = max(width for _, width in self.runs)
        groups = torch.eye(width // GROUP, dtype=matrices.dtype, device=matrices.device)
        # an elementwise product: autocast would round a matrix product
        return (groups[:, None, :, None] * matrices[:, None, :, None, :]).reshape(-1, width, width)


def _step(channels: list[int]) -> int:
    """The constant positive difference of adjacent channels, or 0."""
    steps = {b - a for a, b in pairwise(channels)}
    return max(steps) if len(steps) == 1 and min(steps) > 0 else 0


class CameraMatrices(EncodedCameras):
    """Multiplie groups of four channels, as row vectors, by the 4 x 4 matrix of the token's camera.

    Tokens without a camera and other channels are unchanged, bit for bit; so is everything under identity matrices.

    Args:
        cameras: With the camera of each token; its `token_runs` save a GPU's wait.
        block: The channels.
        on_rotated: Whether q and k are transformed after RoPE instead of before.
        matrices: For q, k, v and o, or some of them: one matrix per camera, multiplied from the right.
    """

    def __init__(
        self, cameras: Cameras, block: ChannelBlock, on_rotated: bool, **matrices: Float[Tensor, "_B _C 4 4"]
    ) -> None:
        index = cameras.index
        assert index is not None
        super().__init__(index.shape[1])
        self.index, self.block, self.on_rotated = index, block, on_rotated
        found = camera_runs(index) if cameras.token_runs is None else cameras.token_runs
        self.runs = found.places
        camera = index.flatten()[found.firsts]
        place = (found.firsts // index.shape[1], camera.clamp(min=0))
        # runs may include tokens whose camera turned out to be invalid: multiplied by the identity, bit for bit
        identity = torch.eye(4, dtype=torch.float64, device=index.device)
        valid = (camera >= 0)[:, None, None]
        self.run_matrices = {
            term: block.block_diagonal(torch.where(valid, m[place], identity.to(m))).split(found.parts_per_run)
            for term, m in matrices.items()
        }

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
        return _MultiplyTokens.apply(x, self.block.runs, self.runs, *matrices) if matrices else x


class _MultiplyTokens(torch.autograd.Function):
    """Multiplie some channels of some tokens by matrices, each of which applies to equally many adjacent tokens.

    Hand-written for speed in every decoder layer: for 1024 tokens with 16 heads of 128 channels, forward and backward
    take 8 to 12 ms on one CPU thread, and 17 to 18 ms with plain operators (slices, bmm and cat), which allocate more.
    benchmarks/attention.md compares whole encodings with plain attention.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, channels: list[ChannelRun], runs: list[slice | Tensor], *matrices: Tensor
    ) -> Tensor:
        ctx.save_for_backward(x if any(m.requires_grad for m in matrices) else None, *matrices)
        ctx.channels, ctx.runs = channels, runs
        out = x.clone(memory_format=torch.contiguous_format)
        source, target = x.flatten(0, 1), out.flatten(0, 1)
        with highest_matmul_precision(x.device):
            for run, m in zip(runs, matrices, strict=True):
                written = target[run]  # a view for a slice, a copy for numbers
                rows, products = _rows_per_matrix(source[run], m), _rows_per_matrix(written, m)
                for each, width in channels:
                    products[..., each] = torch.bmm(rows[..., each].to(m.dtype), m[:, :width, :width])
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
                _matrix_grad(source[r], grad[r], ctx.channels, m) for r, m in zip(ctx.runs, matrices, strict=True)
            ]
        grad_x = _MultiplyTokens.apply(grads[0], ctx.channels, ctx.runs, *(m.mT for m in matrices))
        return grad_x, None, None, *matrix_grads


def _matrix_grad(source: Tensor, grad: Tensor, channels: list[ChannelRun], matrices: Tensor) -> Float[Tensor, "n w w"]:
    rows, grads = (_rows_per_matrix(each, matrices).to(matrices.dtype) for each in (source, grad))
    total = torch.zeros_like(matrices)
    for each, width in channels:
        total[:, :width, :width] += rows[..., each].mT @ grads[..., each]
    return total


def _rows_per_matrix(x: Float[Tensor, "N heads E"], matrices: Float[Tensor, "n w w"]) -> Float[Tensor, "n rows E"]:
    return x.reshape(len(matrices), -1, x.shape[2])
