"""A 4 x 4 matrix a token on some channels of queries, keys, values and outputs."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from zoo.encodings.base import EncodedCameras


class ChannelBlock:
    """Groups of four channels: `width` of them from `start` on in each of `parts` equal parts of a head.

    With one part a group is four neighbours; with two it is (c, c + 1, c + D/2, c + 1 + D/2): two RoPE pairs.
    Channels that others appended to a head are left alone.
    """

    def __init__(self, head_dim: int, start: int, width: int, parts: int = 1) -> None:
        self.head_dim, self.start, self.width, self.parts = head_dim, start, width, parts

    def view(self, x: Shaped[Tensor, "*rest E"]) -> Shaped[Tensor, "*rest parts width"]:
        """The channels, without a copy."""
        return x[..., : self.head_dim].unflatten(-1, (self.parts, -1)).narrow(-1, self.start, self.width)

    def group(self, chosen: Shaped[Tensor, "*rest parts width"]) -> Shaped[Tensor, "*rest G 4"]:
        """What `view` gives, in groups of four."""
        return chosen.unflatten(-1, (-1, 4 // self.parts)).transpose(-3, -2).flatten(-2)

    def ungroup(self, groups: Shaped[Tensor, "*rest G 4"]) -> Shaped[Tensor, "*rest parts width"]:
        """The inverse of `group`."""
        return groups.unflatten(-1, (self.parts, -1)).transpose(-3, -2).flatten(-2)


class PairBlock(ChannelBlock):
    """Four neighbours in each half of a head are a group: (c, c + D/2) stay RoPE's pairs, the matrix is P x I_2."""

    def __init__(self, head_dim: int, start: int, width: int) -> None:
        super().__init__(head_dim, start, width, parts=2)

    def group(self, chosen: Shaped[Tensor, "*rest parts width"]) -> Shaped[Tensor, "*rest G 4"]:
        return chosen.unflatten(-1, (-1, 4)).flatten(-3, -2)

    def ungroup(self, groups: Shaped[Tensor, "*rest G 4"]) -> Shaped[Tensor, "*rest parts width"]:
        return groups.unflatten(-2, (self.parts, -1)).flatten(-2)


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
