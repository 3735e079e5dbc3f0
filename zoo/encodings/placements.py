"""Where a camera acts: on which channels of a head, and on which side of RoPE."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from typing import Literal

from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import Qwen2_5_VLTextModel

from zoo.encodings.base import EncodedCameras
from zoo.encodings.blocks import CameraMatrices
from zoo.encodings.channels import ChannelBlock
from zoo.errors import InputError, check_choice

Section = Literal["t", "h", "w"]
RowMatrices = Mapping[str, Float[Tensor, "B C 4 4"]]


class Placement(nn.Module, ABC):
    """Where the matrices of the cameras act. A module, since some placements learn.

    Attributes:
        requires_constant_time: exact only if all views of a clip have the same time.
        keeps_world: RoPE doesn't come between the cameras: their relative poses alone count.
        keeps_shift: cameras don't come between RoPE's turns: relative positions alone count.
        leaves_text: text and views attend to each other as in the stock decoder.
        keeps_stock: identity matrices change nothing.
        keeps_rope: RoPE's frequencies are the pretrained ones.
    """

    requires_constant_time: bool = False
    keeps_world: bool = True
    keeps_shift: bool = True
    leaves_text: bool = False
    keeps_stock: bool = True
    keeps_rope: bool = True

    def bind_to_decoder(self, language_model: Qwen2_5_VLTextModel, layers: Collection[int]) -> None:
        """See `CameraEncoding.attach`."""

    def head_channels(self, head_dim: int, mrope_section: Sequence[int]) -> list[int]:
        """Those of a head's own that it acts on, four after four as one 4 x 4 matrix takes them; errors as `place`."""
        return []

    @abstractmethod
    def place(
        self, index: Int[Tensor, "B L"], matrices: RowMatrices, head_dim: int, mrope_section: Sequence[int]
    ) -> EncodedCameras:
        """What acts on the tokens.

        Args:
            index: the camera of each token, -1 for none.
            matrices: for q, k, v and o, or some of them: one a camera, to be multiplied from the right.
            head_dim: channels of a head.
            mrope_section: frequencies of mRoPE's sections (t, h, w), half of `head_dim` in all.

        Raises:
            InputError: heads that don't fit.
        """


class ChannelPlacement(Placement):
    """On some of the channels that a head has.

    Attributes:
        before_rope: q' = RoPE(camera(q)) instead of camera(RoPE(q)).
    """

    before_rope: bool = False

    @abstractmethod
    def block(self, head_dim: int, mrope_section: Sequence[int]) -> ChannelBlock:
        """The channels; arguments and errors as `place`."""

    def bind_to_decoder(self, language_model: Qwen2_5_VLTextModel, layers: Collection[int]) -> None:
        config = language_model.config
        self.block(config.hidden_size // config.num_attention_heads, config.rope_parameters["mrope_section"])

    def place(
        self, index: Int[Tensor, "B L"], matrices: RowMatrices, head_dim: int, mrope_section: Sequence[int]
    ) -> CameraMatrices:
        return CameraMatrices(index, self.block(head_dim, mrope_section), not self.before_rope, **matrices)

    def head_channels(self, head_dim: int, mrope_section: Sequence[int]) -> list[int]:
        return [c for some in self.block(head_dim, mrope_section).slices for c in range(some.start, some.stop)]


class ChannelRange(ChannelPlacement):
    """A range of raw head channels, after RoPE, which has turned them: the first half holds one channel of each pair.

    This keeps the invariance to a change of world, and breaks RoPE's own to a shift of all positions.

    Args:
        start: where the range begins, as a fraction of the head's width.
        stop: where it ends.
    """

    keeps_shift = False

    def __init__(self, start: int | float = 0.0, stop: int | float = 0.5) -> None:
        super().__init__()
        if not 0.0 <= start < stop <= 1.0:
            raise InputError(f"a range of channels needs 0 <= start < stop <= 1, got {start} to {stop}")
        self.start, self.stop = start, stop

    def block(self, head_dim: int, mrope_section: Sequence[int]) -> ChannelBlock:
        start, stop = round(self.start * head_dim), round(self.stop * head_dim)
        if stop == start or (stop - start) % 4:
            raise InputError(f"channels {start} to {stop} of {head_dim} don't come in groups of four")
        return ChannelBlock(head_dim, start, stop - start)


class TemporalSection(ChannelPlacement):
    """The channels of mRoPE's T section, in RoPE's pairs (c, c + D/2), before RoPE.

    If all views of a clip have one time, RoPE turns all of its tokens there by the same angles, which cancel:
    the invariances to a change of world and to a shift of all positions are both exact. A clip is one video;
    stills that follow each other start at different positions, and between them only the latter holds.
    """

    before_rope = True
    requires_constant_time = True

    def block(self, head_dim: int, mrope_section: Sequence[int]) -> ChannelBlock:
        width = mrope_section[0]
        if not width or width % 4:
            raise InputError(f"one matrix takes four frequencies of mRoPE's T section, which has {width}")
        return ChannelBlock(head_dim, 0, width, parts=2)


class Frequencies(ChannelPlacement):
    """Some frequencies of one mRoPE section, on RoPE's pairs (c, c + D/2), before RoPE: P x I_2 on four pairs.

    RoPE turns the four pairs of a group by different angles, so it commutes with the camera only nearly: the
    invariance to a shift of all positions is exact, that to a change of world is off by `commutation_error`. If the
    four are tied to one frequency, both are exact, but RoPE is no longer the pretrained one, for text neither.

    Args:
        count: how many frequencies, a multiple of four.
        section: of mRoPE.
        shared_frequency: give the four pairs of a group their geometric mean.
    """

    before_rope = True

    def __init__(self, count: int = 4, section: Section = "w", shared_frequency: bool = False) -> None:
        super().__init__()
        check_choice("section", section, Section)
        if count < 4 or count % 4:
            raise InputError(f"one matrix takes four frequencies: a multiple of four, not {count}")
        self.count, self.section, self.shared_frequency = count, section, shared_frequency
        self.keeps_world, self.keeps_rope = shared_frequency, not shared_frequency

    @abstractmethod
    def first(self, start: int, stop: int) -> int:
        """The first of the frequencies, where the section goes from `start` to `stop`, from high to low."""

    def block(self, head_dim: int, mrope_section: Sequence[int]) -> ChannelBlock:
        section = "thw".index(self.section)
        start, width = sum(mrope_section[:section]), mrope_section[section]
        if self.count > width:
            raise InputError(f"mRoPE's {self.section} section has {width} frequencies, fewer than {self.count}")
        return ChannelBlock(head_dim, self.first(start, start + width), self.count, parts=2)

    def bind_to_decoder(self, language_model: Qwen2_5_VLTextModel, layers: Collection[int]) -> None:
        super().bind_to_decoder(language_model, layers)
        if self.shared_frequency:
            rotary, section = language_model.rotary_emb, language_model.config.rope_parameters["mrope_section"]
            for frequencies in (rotary.inv_freq, rotary.original_inv_freq):
                fours = self._fours(frequencies, section)
                fours.copy_(fours.log().mean(-1, keepdim=True).exp().expand_as(fours))

    def commutation_error(self, frequencies: Float[Tensor, " F"], mrope_section: Sequence[int]) -> float:
        """How far RoPE is from one angle for each four pairs, in radians a position between two tokens.

        Half of the widest range of frequencies that one matrix takes. In the spectral norm, RoPE's turn between two
        tokens differs by no more than that, times the positions between them, from one that commutes with cameras.

        Args:
            frequencies: of RoPE, radians a position.
        """
        fours = self._fours(frequencies, mrope_section)
        return float((fours.amax(-1) - fours.amin(-1)).max() / 2)

    def _fours(self, frequencies: Tensor, mrope_section: Sequence[int]) -> Float[Tensor, "groups 4"]:
        block = self.block(2 * len(frequencies), mrope_section)
        return frequencies[block.start : block.start + block.width].view(-1, 4)


class LowFrequencies(Frequencies):
    """The lowest frequencies of one mRoPE section, see `Frequencies`: nearly still, so nearly exact."""

    def first(self, start: int, stop: int) -> int:
        return stop - self.count


class HighFrequencies(Frequencies):
    """The highest frequencies of one mRoPE section, see `Frequencies`: untied, they turn far from each other."""

    def first(self, start: int, stop: int) -> int:
        return start
