"""The seam of every camera encoding: built once a forward pass, then shared by all layers of the decoder.

An encoding turns `Cameras` into an `EncodedCameras`, which acts on queries, keys, values and outputs, and on nothing
else of the attention: so it works with every backend, and what enters the KV cache is already encoded.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from zoo.cameras import Cameras


class Placement(ABC):
    """On which channels of a head the camera acts, and whether before or after RoPE."""

    before_rope: bool = False
    needs_constant_time: bool = False  # exact only if all views of a clip have the same time position

    @abstractmethod
    def blocks(self, head_dim: int, mrope_section: Sequence[int]) -> ChannelBlock:
        """The channels, for heads of this width, whose mRoPE has these sections (t, h, w; half of the width).

        Raises:
            ValueError: channels that can't be had in groups of four.
        """

    def channels(self, head_dim: int, mrope_section: Sequence[int]) -> list[int]:
        """The same as a list: four after four are what one 4 x 4 matrix acts on."""
        block = self.blocks(head_dim, mrope_section)
        return block.gather(torch.arange(head_dim)).flatten().tolist()


class ChannelBlock:
    """Groups of four channels: `width` channels from `start` on in each of `parts` equal parts of the head.

    With one part a group is four neighbours; with two it is (c, c+1, c + d/2, c+1 + d/2), whole RoPE pairs.
    """

    def __init__(self, start: int, width: int, parts: int = 1) -> None:
        self.start, self.width, self.parts = start, width, parts

    def gather(self, x: Float[Tensor, "*rest D"]) -> Float[Tensor, "*rest G 4"]:
        """The chosen channels in groups."""
        chosen = x.unflatten(-1, (self.parts, -1)).narrow(-1, self.start, self.width)
        return chosen.unflatten(-1, (-1, 4 // self.parts)).transpose(-3, -2).flatten(-2)

    def scatter(self, x: Float[Tensor, "*rest D"], groups: Float[Tensor, "*rest G 4"]) -> Float[Tensor, "*rest D"]:
        """`x` with the chosen channels replaced; the other ones keep their bits."""
        parts = x.unflatten(-1, (self.parts, -1))
        chosen = groups.unflatten(-1, (self.parts, -1)).transpose(-3, -2).flatten(-2)
        end = self.start + self.width
        return torch.cat((parts[..., : self.start], chosen, parts[..., end:]), -1).flatten(-2)


class Fraction(Placement):
    """A range of raw head channels, after RoPE, as other projects do it.

    Camera after RoPE keeps the invariance to a change of world, and breaks RoPE's to a shift of positions.

    Args:
        start, stop: the range, as fractions of the head's width.
    """

    def __init__(self, start: float = 0.0, stop: float = 0.5) -> None:
        if not 0.0 <= start < stop <= 1.0:
            raise ValueError(f"a fraction of the channels needs 0 <= start < stop <= 1, got {start} and {stop}")
        self.start, self.stop = start, stop

    def blocks(self, head_dim: int, mrope_section: Sequence[int]) -> ChannelBlock:
        start, stop = round(self.start * head_dim), round(self.stop * head_dim)
        if (stop - start) % 4 or stop == start:
            raise ValueError(f"channels {start} to {stop} of {head_dim} aren't whole groups of four: change the fraction")
        return ChannelBlock(start, stop - start)


class TSection(Placement):
    """The channels of mRoPE's T section, in RoPE's pairs (c, c + d/2), before RoPE.

    With one time for all views of a clip, RoPE is there the same rotation for all of its tokens, and cancels: both the
    invariance to a change of world and to a shift of positions are exact. A clip is one video: stills that follow each
    other start at different positions, so between them only the latter holds.
    """

    before_rope = True
    needs_constant_time = True

    def blocks(self, head_dim: int, mrope_section: Sequence[int]) -> ChannelBlock:
        width = mrope_section[0]
        if width % 2 or not width:
            raise ValueError(f"mRoPE's T section must hold an even number of frequencies, got {list(mrope_section)}")
        return ChannelBlock(0, width, parts=2)


class EncodedCameras:
    """What an encoding does to one forward pass. The base class does nothing: subclasses override what they need.

    All methods take and return (B, L, heads, D), token after token; k and v may have fewer heads than q and o (GQA).

    Attributes:
        num_tokens: L, the tokens that were encoded.
    """

    def __init__(self, num_tokens: int) -> None:
        self.num_tokens = num_tokens

    def before_rope(
        self, q: Float[Tensor, "B L H D"], k: Float[Tensor, "B L G D"]
    ) -> tuple[Float[Tensor, "B L H D"], Float[Tensor, "B L G D"]]:
        return q, k

    def after_rope(
        self, q: Float[Tensor, "B L H D"], k: Float[Tensor, "B L G D"]
    ) -> tuple[Float[Tensor, "B L H D"], Float[Tensor, "B L G D"]]:
        return q, k

    def values(self, v: Float[Tensor, "B L G D"]) -> Float[Tensor, "B L G D"]:
        return v

    def outputs(self, o: Float[Tensor, "B L H D"]) -> Float[Tensor, "B L H D"]:
        return o


class CameraEncoding(nn.Module, ABC):
    """A way to tell attention about cameras. A module, since some encodings learn a number or two."""

    @property
    def needs_constant_time(self) -> bool:
        """Whether the position ids must give all views of a clip the same time (`NoTime`)."""
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
            mrope_section: frequencies of the three mRoPE sections (t, h, w).
            dtype: of the hidden states; matrices are kept in float32 or better.

        Raises:
            ValueError: cameras without an index, or a head that the placement doesn't fit.
        """


class CameraMatrices(EncodedCameras):
    """A 4 x 4 matrix for each token on groups of four channels: row vectors times q, k, v and o, each optional.

    Args:
        index: the camera of each token, -1 for none: such tokens keep their bits.
        block: the channels.
        before_rope: whether q and k are encoded before RoPE.
        q, k, v, o: a matrix for each camera, multiplied from the right; None leaves that term alone.
    """

    def __init__(
        self,
        index: Tensor,
        block: ChannelBlock,
        before_rope: bool,
        *,
        q: Float[Tensor, "B C 4 4"] | None = None,
        k: Float[Tensor, "B C 4 4"] | None = None,
        v: Float[Tensor, "B C 4 4"] | None = None,
        o: Float[Tensor, "B C 4 4"] | None = None,
    ) -> None:
        super().__init__(index.shape[1])
        self.block = block
        self._before_rope = before_rope
        self._q, self._k, self._v, self._o = (None if m is None else _per_token(m, index) for m in (q, k, v, o))

    def before_rope(self, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        return (self._apply(q, self._q), self._apply(k, self._k)) if self._before_rope else (q, k)

    def after_rope(self, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        return (q, k) if self._before_rope else (self._apply(q, self._q), self._apply(k, self._k))

    def values(self, v: Tensor) -> Tensor:
        return self._apply(v, self._v)

    def outputs(self, o: Tensor) -> Tensor:
        return self._apply(o, self._o)

    def _apply(self, x: Float[Tensor, "B L H D"], matrices: Float[Tensor, "B L 4 4"] | None) -> Float[Tensor, "B L H D"]:
        if matrices is None:
            return x
        groups = self.block.gather(x)
        # autocast would take this product to half precision, and the poses with it
        with torch.autocast(x.device.type, enabled=False):
            turned = groups.to(matrices.dtype).flatten(2, 3) @ matrices
        return self.block.scatter(x, turned.to(x.dtype).view(groups.shape))


def _per_token(matrices: Float[Tensor, "B C 4 4"], index: Tensor) -> Float[Tensor, "B L 4 4"]:
    batch, num_cameras = matrices.shape[:2]
    identity = torch.eye(4, dtype=matrices.dtype, device=matrices.device).expand(batch, 1, 4, 4)
    index = torch.where(index < 0, num_cameras, index).to(matrices.device)
    return torch.cat((matrices, identity), 1)[torch.arange(batch, device=index.device)[:, None], index]
