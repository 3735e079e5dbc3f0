"""Where a camera acts: on which channels of a head, and on which side of RoPE."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from jaxtyping import Shaped
from torch import Tensor

from zoo.errors import InputError


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


class Placement(ABC):
    """On which channels of a head the camera acts, and whether before or after RoPE.

    Attributes:
        before_rope: q' = RoPE(camera(q)) instead of camera(RoPE(q)).
        needs_constant_time: exact only if all views of a clip have the same time.
        keeps_world: RoPE doesn't come between the cameras: their relative poses alone count.
        keeps_shift: cameras don't come between RoPE's turns: relative positions alone count.
    """

    before_rope: bool = False
    needs_constant_time: bool = False
    keeps_world: bool = True
    keeps_shift: bool = True

    @abstractmethod
    def block(self, head_dim: int, mrope_section: Sequence[int]) -> ChannelBlock:
        """The channels.

        Args:
            head_dim: channels of a head.
            mrope_section: frequencies of mRoPE's sections (t, h, w), half of `head_dim` in all.

        Raises:
            InputError: channels that don't come in groups of four.
        """

    def channels(self, head_dim: int, mrope_section: Sequence[int]) -> list[int]:
        """The channels as a list: four after four are what one 4 x 4 matrix acts on."""
        block = self.block(head_dim, mrope_section)
        return block.group(block.view(torch.arange(head_dim))).flatten().tolist()


class Fraction(Placement):
    """A range of raw head channels, after RoPE, as other projects have it.

    This keeps the invariance to a change of world, and breaks RoPE's own to a shift of all positions.

    Args:
        start, stop: the range, in fractions of the head's width.
    """

    keeps_shift = False

    def __init__(self, start: int | float = 0.0, stop: int | float = 0.5) -> None:
        if not 0.0 <= start < stop <= 1.0:
            raise InputError(f"a range of channels needs 0 <= start < stop <= 1, got {start} to {stop}")
        self.start, self.stop = start, stop

    def block(self, head_dim: int, mrope_section: Sequence[int]) -> ChannelBlock:
        start, stop = round(self.start * head_dim), round(self.stop * head_dim)
        if stop == start or (stop - start) % 4:
            raise InputError(f"channels {start} to {stop} of {head_dim} don't come in groups of four")
        return ChannelBlock(head_dim, start, stop - start)


class TSection(Placement):
    """The channels of mRoPE's T section, in RoPE's pairs (c, c + D/2), before RoPE.

    If all views of a clip have one time, RoPE turns all of its tokens there by the same angles, which cancel:
    the invariances to a change of world and to a shift of all positions are both exact. A clip is one video;
    stills that follow each other start at different positions, and between them only the latter holds.
    """

    before_rope = True
    needs_constant_time = True

    def block(self, head_dim: int, mrope_section: Sequence[int]) -> ChannelBlock:
        width = mrope_section[0]
        if not width or width % 2:
            raise InputError(f"mRoPE's T section needs an even number of frequencies, got {width}")
        return ChannelBlock(head_dim, 0, width, parts=2)
