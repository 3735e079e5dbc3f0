"""Products of tokens with the matrices of their cameras, written into one copy of the tokens, and their gradients."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from functools import cached_property
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from zoo.cameras import Cameras
from zoo.cameras.cameras import camera_runs
from zoo.encodings.base import QK, EncodedCameras
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


# ---- Products of 4 x 4 matrices, one per camera, with some channels of the tokens' q, k, v and o --------------------

WIDTH = 32  # channels multiplied at once, by a block-diagonal matrix: matrix libraries are slow for four


class ChannelBlock:
    """Head channels in groups of four, each of which is multiplied by a 4 x 4 matrix.

    A group in the first half of a head and the same in the second share a matrix P, which is P x I_2 on four of RoPE's
    pairs. Channels appended by another encoding are not included.

    Args:
        channels: A multiple of four.
    """

    def __init__(self, channels: Sequence[int]) -> None:
        self.channels = list(channels)

    def parts(self, device: torch.device) -> list[ChannelPart]:
        """Split the channels into whole groups of four.

        A CPU gets parts of `WIDTH` channels, slices where it can read them without a copy. Any other device gets one
        part, since each call launches kernels.
        """
        if device.type == "cpu":
            return [ChannelPart(_index(run, device), len(run)) for run in self.runs]
        width = max(width for width in range(GROUP, WIDTH + 1, GROUP) if len(self.channels) % width == 0)
        return [ChannelPart(_index(self.channels, device), width)]

    @cached_property
    def runs(self) -> list[list[int]]:
        """The channels in runs of constant steps, of at most `WIDTH`; a group of uneven steps is a run of its own."""
        runs: list[list[int]] = []
        for i in range(0, len(self.channels), GROUP):
            group = self.channels[i : i + GROUP]
            if runs and len(runs[-1]) < WIDTH and _step(runs[-1]) and _step([*runs[-1], *group]):
                runs[-1] += group
            else:
                runs.append(group)
        return runs


def _index(channels: list[int], device: torch.device) -> slice | Tensor:
    step = _step(channels)
    if step:
        return slice(channels[0], channels[0] + step * len(channels), step)
    return torch.tensor(channels).to(device, non_blocking=True)


def _step(channels: list[int]) -> int:
    """The constant positive difference of adjacent channels, or 0."""
    steps = {b - a for a, b in pairwise(channels)}
    return max(steps) if len(steps) == 1 and min(steps) > 0 else 0


class CameraMatrices(EncodedCameras):
    """Multiply groups of four channels, as row vectors, by the 4 x 4 matrix of the token's camera.

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
        self.products = CameraProducts(found.places, block.parts(index.device))
        camera = index.flatten()[found.firsts]
        place = (found.firsts // index.shape[1], camera.clamp(min=0))
        # runs may include tokens whose camera turned out to be invalid: multiplied by the identity, bit for bit
        identity = torch.eye(4, dtype=torch.float64, device=index.device)
        valid = (camera >= 0)[:, None, None]
        of_parts = {term: torch.where(valid, m[place], identity.to(m)) for term, m in matrices.items()}
        self.run_matrices = {
            term: block_diagonal(m, self.products.parts).split(found.parts_per_run) for term, m in of_parts.items()
        }

    @property
    def is_empty(self) -> bool:
        """Whether no token has a camera."""
        return not self.products.tokens

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
        return map_tokens(x, self.products, matrices) if matrices else x
