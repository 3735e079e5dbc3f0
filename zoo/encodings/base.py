"""The seam of every camera encoding: built once a forward pass, then shared by all layers of the decoder.

An encoding turns `Cameras` into an `EncodedCameras`, which acts on queries, keys, values and outputs, and on
nothing else of the attention: it works with every backend, and what enters the KV cache is encoded already.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from zoo.cameras import Cameras
from zoo.encodings.placements import ChannelBlock


class EncodedCameras:
    """What an encoding does to one forward pass; this one does nothing, subclasses override what they need.

    All methods take and return (B, L, heads, D), token after token; with GQA, k and v have fewer heads than q
    and o.

    Attributes:
        num_tokens: L, the tokens that were encoded.
    """

    def __init__(self, num_tokens: int) -> None:
        self.num_tokens = num_tokens

    def before_rope(
        self, q: Float[Tensor, "B L H D"], k: Float[Tensor, "B L G D"]
    ) -> tuple[Float[Tensor, "B L H D"], Float[Tensor, "B L G D"]]:
        """Queries and keys as RoPE is to get them."""
        return q, k

    def after_rope(
        self, q: Float[Tensor, "B L H D"], k: Float[Tensor, "B L G D"]
    ) -> tuple[Float[Tensor, "B L H D"], Float[Tensor, "B L G D"]]:
        """Queries and keys as the attention, and the KV cache, are to get them."""
        return q, k

    def values(self, v: Float[Tensor, "B L G D"]) -> Float[Tensor, "B L G D"]:
        """Values as the attention, and the KV cache, are to get them."""
        return v

    def outputs(self, o: Float[Tensor, "B L H D"]) -> Float[Tensor, "B L H D"]:
        """The attention's outputs as the output projection is to get them."""
        return o


class CameraEncoding(nn.Module, ABC):
    """A way to tell attention about cameras. A module, since some encodings learn a number or two."""

    @property
    def needs_constant_time(self) -> bool:
        """Whether all views of a clip must have the same time position (`NoTime`)."""
        return False

    @abstractmethod
    def encode(
        self,
        cameras: Cameras,
        *,
        head_dim: int,
        mrope_section: Sequence[int],
        dtype: torch.dtype = torch.float32,
    ) -> EncodedCameras:
        """What all layers share in one forward pass.

        Args:
            cameras: with an `index` (B, L): the camera of each token of the sequence, -1 for none.
            head_dim: channels of an attention head.
            mrope_section: frequencies of the three sections of mRoPE (t, h, w).
            dtype: precision of the matrices, float32 or better whatever the hidden states are in.

        Raises:
            ValueError: cameras without an index, or heads that the placement doesn't fit.
        """


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
        sample, token = (index >= 0).nonzero(as_tuple=True)
        self.tokens = sample * self.num_tokens + token  # those that have a camera, in the flattened batch
        camera = index[sample, token]
        self.q, self.k, self.v, self.o = (None if m is None else m[sample, camera] for m in (q, k, v, o))

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
        groups = block.group(block.view(x).flatten(0, 1)[tokens]).to(matrices.dtype)
        ctx.save_for_backward(groups if matrices.requires_grad else None, matrices, tokens)
        ctx.block = block
        # autocast would take this product to half precision, and the poses with it
        with torch.autocast(x.device.type, enabled=False):
            turned = groups.flatten(1, 2) @ matrices
        out = x.clone(memory_format=torch.contiguous_format)
        block.view(out).flatten(0, 1)[tokens] = block.ungroup(turned.view(groups.shape)).to(x.dtype)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor | None, None, None]:
        groups, matrices, tokens = ctx.saved_tensors
        grad_matrices = None
        if groups is not None:
            grad_groups = ctx.block.group(ctx.block.view(grads[0]).flatten(0, 1)[tokens])
            grad_matrices = groups.flatten(1, 2).mT @ grad_groups.to(groups.dtype).flatten(1, 2)
        return _Times.apply(grads[0], matrices.mT, tokens, ctx.block), grad_matrices, None, None
