"""Placements: the head channels that an encoding transforms, before or after RoPE."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from zoo.cameras import Cameras
from zoo.configuration import Configurable
from zoo.encodings.channel_blocks import CameraMatrices, ChannelBlock
from zoo.encodings.decoder_layout import DecoderLayout, HeadLayout
from zoo.encodings.encoded import EncodedCameras
from zoo.errors import InputError, check_choice

Section = Literal["t", "h", "w"]
AXES = "thw"  # the sections by the numbers of `HeadLayout.axes`
Matrices = Mapping[str, Float[Tensor, "B C 4 4"]]  # of q, k, v and o, or some of them; one matrix per camera


class Placement(Configurable, nn.Module, ABC):
    """The channels on which the cameras' matrices act; a module, because some placements have parameters.

    Attributes:
        requires_constant_time: Exact only if all views of a clip share one time position.
        keeps_world: RoPE commutes with the matrices, so attention between views depends on relative poses only.
        keeps_shift: The matrices commute with RoPE, so attention depends on relative positions only.
        leaves_text: Attention between text and views is that of the stock decoder.
        keeps_stock: Identity matrices change nothing.
        keeps_rope: RoPE's frequencies are the pretrained ones.
    """

    requires_constant_time: bool = False
    keeps_world: bool = True
    keeps_shift: bool = True
    leaves_text: bool = False
    keeps_stock: bool = True
    keeps_rope: bool = True

    def bind_to_decoder(self, decoder: DecoderLayout, layers: Collection[int]) -> None:
        """Create the tensors that depend on the decoder's sizes, see `CameraEncoding.bind_to_decoder`."""

    def head_channels(self, head: HeadLayout) -> list[int]:
        """Return the transformed channels of a head, without appended ones, in groups of four per 4 x 4 matrix."""
        return []

    @abstractmethod
    def place(self, cameras: Cameras, matrices: Matrices, head: HeadLayout) -> EncodedCameras:
        """Apply the matrices to the channels.

        Args:
            cameras: With the camera of each token.
            matrices: For row vectors, that is, multiplied from the right.
            head: The channels of a head.

        Raises:
            InputError: The placement does not fit heads of this size.
        """


class ChannelPlacement(Placement):
    """A placement on existing channels of a head.

    Attributes:
        before_rope: q' = RoPE(M q) instead of M RoPE(q).
    """

    before_rope: bool = False

    @abstractmethod
    def block(self, head: HeadLayout) -> ChannelBlock:
        """Return the channels; for arguments and errors see `place`."""

    def bind_to_decoder(self, decoder: DecoderLayout, layers: Collection[int]) -> None:
        self.block(decoder.head)  # raises if it does not fit

    def place(self, cameras: Cameras, matrices: Matrices, head: HeadLayout) -> CameraMatrices:
        return CameraMatrices(cameras, self.block(head), not self.before_rope, **matrices)

    def head_channels(self, head: HeadLayout) -> list[int]:
        return self.block(head).channels


class ChannelRange(ChannelPlacement):
    """A contiguous range of head channels, after RoPE.

    Where RoPE rotates whole heads, the first half contains one channel of each RoPE pair. In Qwen3.5, where it rotates
    the first quarter, the first half contains all pairs and as many channels without RoPE.

    Keeps the invariance to a change of world, and breaks RoPE's invariance to a shift of all positions, unless it is
    bound to a decoder whose RoPE leaves these channels alone.

    Args:
        start: First channel, as a fraction of the head width.
        stop: End of the range, as a fraction of the head width.
    """

    keeps_shift = False

    def __init__(self, start: int | float = 0.0, stop: int | float = 0.5) -> None:
        super().__init__()
        if not 0.0 <= start < stop <= 1.0:
            raise InputError(f"ChannelRange requires 0 <= start < stop <= 1, got {start} and {stop}")
        self.start, self.stop = start, stop

    def bind_to_decoder(self, decoder: DecoderLayout, layers: Collection[int]) -> None:
        super().bind_to_decoder(decoder, layers)
        self.keeps_shift = min(self.head_channels(decoder.head)) >= decoder.head.num_rotated

    def block(self, head: HeadLayout) -> ChannelBlock:
        start, stop = round(self.start * head.dim), round(self.stop * head.dim)
        if stop == start or (stop - start) % 4:
            raise InputError(f"channels {start} to {stop} of {head.dim} are not a multiple of four: change the range")
        return ChannelBlock(range(start, stop))


class UnrotatedChannels(ChannelPlacement):
    """The channels that RoPE leaves alone: 192 of 256 in Qwen3.5, all of a Gated DeltaNet head.

    The invariances to a change of world and to a shift of all positions are both exact, at any time positions.

    Args:
        count: The number of channels, a multiple of four, the last ones of a head; null is all of them.
    """

    def __init__(self, count: int | None = None) -> None:
        super().__init__()
        if count is not None and (count < 4 or count % 4):
            raise InputError(f"UnrotatedChannels: the number of channels must be a multiple of four, got {count}")
        self.count = count

    def block(self, head: HeadLayout) -> ChannelBlock:
        free = head.dim - head.num_rotated
        count = free // 4 * 4 if self.count is None else self.count
        if not 0 < count <= free:
            raise InputError(
                f"UnrotatedChannels: RoPE rotates {head.num_rotated} of the {head.dim} channels of this decoder's "
                f"heads, which leaves {free}: take a smaller count, or TemporalSection or ChannelRange"
            )
        return ChannelBlock(range(head.dim - count, head.dim))


class TemporalSection(ChannelPlacement):
    """The channels of mRoPE's T section, as RoPE pairs (c, c + F), before RoPE.

    If all views of a clip share one time position, RoPE rotates all of their tokens there by the same angles, which
    cancel: the invariances to a change of world and to a shift of all positions are both exact. A clip is one video;
    consecutive stills start at different positions, and between them only the latter holds.
    """

    before_rope = True
    requires_constant_time = True

    def block(self, head: HeadLayout) -> ChannelBlock:
        section = head.frequencies(AXES.index("t"))
        if not section or len(section) % 4:
            raise InputError(
                f"TemporalSection requires a T section with a multiple of four frequencies, got {len(section)}"
            )
        return ChannelBlock(head.pairs(section))


class Frequencies(ChannelPlacement):
    """Some frequencies of one mRoPE section, as RoPE pairs (c, c + F), before RoPE: P x I_2 on four pairs.

    RoPE rotates the four pairs of a group by different angles, so it commutes with the camera only approximately: the
    invariance to a shift of all positions is exact, the invariance to a change of world has `commutation_error`. With
    a shared frequency both are exact, but RoPE differs from the pretrained one, for text as well.

    Args:
        count: Number of frequencies, a multiple of four.
        section: The mRoPE section.
        shared_frequency: Replace the four frequencies of a group by their geometric mean.
    """

    before_rope = True

    def __init__(self, count: int = 4, section: Section = "w", shared_frequency: bool = False) -> None:
        super().__init__()
        check_choice("section", section, Section)
        if count < 4 or count % 4:
            raise InputError(f"the number of frequencies must be a multiple of four, got {count}")
        self.count, self.section, self.shared_frequency = count, section, shared_frequency
        self.keeps_world, self.keeps_rope = shared_frequency, not shared_frequency

    @abstractmethod
    def choose(self, section: list[int]) -> list[int]:
        """Return `count` of the frequencies of the section, which are in order from high to low."""

    def chosen(self, head: HeadLayout) -> list[int]:
        """Return the numbers of the frequencies.

        Raises:
            InputError: The section has too few.
        """
        section = head.frequencies(AXES.index(self.section))
        if self.count > len(section):
            raise InputError(f"mRoPE's {self.section} section has {len(section)} frequencies, fewer than {self.count}")
        return self.choose(section)

    def block(self, head: HeadLayout) -> ChannelBlock:
        return ChannelBlock(head.pairs(self.chosen(head)))

    def bind_to_decoder(self, decoder: DecoderLayout, layers: Collection[int]) -> None:
        super().bind_to_decoder(decoder, layers)
        if self.shared_frequency:
            groups = self._groups_of_four(decoder.head)
            for frequencies in decoder.rope_frequencies:
                frequencies[groups] = frequencies[groups].log().mean(-1, keepdim=True).exp().expand(groups.shape)

    def commutation_error(self, frequencies: Float[Tensor, " F"], head: HeadLayout) -> float:
        """Compute how far RoPE is from one common rotation of each four pairs, in radians per position.

        This is half of the largest range of the four frequencies of a group. In the spectral norm, RoPE's rotation
        between two tokens differs from one that commutes with the cameras by at most this number times the positions
        between them.

        Args:
            frequencies: RoPE's inverse frequencies, in radians per position.
            head: The axis of each.
        """
        groups = frequencies[self._groups_of_four(head)]
        return float((groups.amax(-1) - groups.amin(-1)).max() / 2)

    def _groups_of_four(self, head: HeadLayout) -> Int[Tensor, "groups 4"]:
        return torch.tensor(self.chosen(head)).view(-1, 4)


class LowFrequencies(Frequencies):
    """The lowest frequencies of one mRoPE section, see `Frequencies`: RoPE almost commutes with the camera there."""

    def choose(self, section: list[int]) -> list[int]:
        return section[-self.count :]


class HighFrequencies(Frequencies):
    """The highest frequencies of one mRoPE section, see `Frequencies`: unless shared, far from commuting."""

    def choose(self, section: list[int]) -> list[int]:
        return section[: self.count]
