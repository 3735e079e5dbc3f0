"""Placements: the head channels that an encoding transforms, before or after RoPE."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from zoo.cameras import Cameras
from zoo.configuration import Configurable
from zoo.encodings.base import QK, CameraEncoding, EncodedCameras, EncodedGroup, Rope, Symmetries
from zoo.encodings.channel_blocks import CameraMatrices, ChannelBlock
from zoo.encodings.decoder_layout import DecoderLayout, HeadLayout
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


# ---- Encodings on a subset of the layers or heads, and placements that alternate from layer to layer ----------------


class EncodingWrapper(CameraEncoding):
    """Base class of encodings that apply another one partially, with its own reference view and scale."""

    def __init__(self, encoding: CameraEncoding) -> None:
        super().__init__(reference=None)
        if encoding.time_index is not None:
            raise InputError(f"{type(encoding).__name__} changes position ids, which all layers and heads share")
        if encoding.chooses_linear_layers:
            raise InputError(f"{type(self).__name__} around DeltaNetLayers has no effect: put it inside of them")
        self.encoding, self.parts = encoding, (encoding,)

    @property
    def symmetries(self) -> Symmetries:
        return self.encoding.symmetries


Parity = Literal["even", "odd"]


class LayerSubset(EncodingWrapper):
    """An encoding in some layers; the others are stock attention.

    Args:
        encoding: The encoding of these layers.
        layers: Their numbers, from 0, or `even` or `odd`. In a hybrid decoder they count layers of both kinds: Qwen3.5
            has full attention in layers 3, 7, 11, ..., so `odd` are all of these, and `even` raises InputError.
    """

    def __init__(self, encoding: CameraEncoding, layers: list[int] | Parity = "even") -> None:
        super().__init__(encoding)
        if isinstance(layers, str):
            check_choice("layers", layers, Parity)
        self.layers = layers

    def bind_to_decoder(self, decoder: DecoderLayout, layers: Collection[int]) -> None:
        if not isinstance(self.layers, str):
            check_numbers("layers", self.layers, decoder.num_layers)
            if others := sorted(set(self.layers) - set(decoder.layers)):
                raise InputError(f"layers {others} are no layers of {decoder.kind}: choose of {decoder.layers}")
        super().bind_to_decoder(decoder, check_not_empty(filter(self.acts_in, layers), self.encoding))

    def encode(self, cameras: Cameras, *head: Any, **options: Any) -> EncodedCameras:
        return EncodedByLayer(
            [self.encoding.encode(cameras, *head, **options), None], lambda layer: int(not self.acts_in(layer))
        )

    def acts_in(self, layer: int) -> bool:
        """Whether the encoding acts in a layer."""
        return layer in self.layers if not isinstance(self.layers, str) else layer % 2 == (self.layers == "odd")


class HeadSubset(EncodingWrapper):
    """An encoding in some heads; the others are stock attention.

    Args:
        encoding: The encoding of these heads.
        key_value_heads: Numbers of the heads of k and v, from 0, with the query heads that share them.
    """

    def __init__(self, encoding: CameraEncoding, key_value_heads: list[int]) -> None:
        super().__init__(encoding)
        if encoding.attends_per_view:
            raise InputError(f"{type(encoding).__name__} acts in all heads of a layer: leave HeadSubset out")
        self.key_value_heads = key_value_heads

    def bind_to_decoder(self, decoder: DecoderLayout, layers: Collection[int]) -> None:
        check_numbers("key_value_heads", self.key_value_heads, decoder.num_key_value_heads)
        chosen = torch.zeros(decoder.num_key_value_heads, 1, dtype=torch.bool, device=decoder.device)
        chosen[self.key_value_heads] = True
        group = decoder.num_heads // decoder.num_key_value_heads
        self.kv_mask = nn.Buffer(chosen, persistent=False)
        self.query_mask = nn.Buffer(chosen.repeat_interleave(group, 0), persistent=False)
        super().bind_to_decoder(decoder, layers)

    def encode(self, cameras: Cameras, *head: Any, **options: Any) -> EncodedCameras:
        return EncodedHeads(self.encoding.encode(cameras, *head, **options), self.query_mask, self.kv_mask)


class EncodedHeads(EncodedGroup):
    """Another encoding's hooks in some heads; channels that it appends are zeros in the others.

    Args:
        encoded: The hooks of the other encoding.
        query_mask: Its heads of q and o.
        kv_mask: Its heads of k and v.
    """

    def __init__(self, encoded: EncodedCameras, query_mask: Bool[Tensor, "H 1"], kv_mask: Bool[Tensor, "G 1"]) -> None:
        super().__init__([encoded])
        self.query_mask, self.kv_mask = query_mask, kv_mask

    def before_rope(self, q: Tensor, k: Tensor) -> QK:
        return self._select(self.acting[0].before_rope(q, k), q, k)

    def after_rope(self, q: Tensor, k: Tensor) -> QK:
        return self._select(self.acting[0].after_rope(q, k), q, k)

    def transform_values(self, v: Tensor) -> Tensor:
        return _where(self.kv_mask, self.acting[0].transform_values(v), v)

    def transform_outputs(self, o: Tensor) -> Tensor:
        return _where(self.query_mask, self.acting[0].transform_outputs(o), o)

    def _select(self, transformed: QK, q: Tensor, k: Tensor) -> QK:
        return _where(self.query_mask, transformed[0], q), _where(self.kv_mask, transformed[1], k)


class AlternateAxes(Placement):
    """Placements that alternate: the first in the first layer with the encoding, the second in the next, cyclically.

    With `LowFrequencies` of the sections w and h, the camera shares channels with x in one layer and y in the next.

    Args:
        placements: At least two.
    """

    def __init__(self, placements: list[Placement]) -> None:
        super().__init__()
        if len(placements) < 2:
            raise InputError(f"AlternateAxes requires at least two placements, got {len(placements)}")
        self.each = tuple(placements)
        self.placements = nn.ModuleList(placements)  # registers their parameters
        self.turns: dict[int, int] = {}
        self.requires_constant_time = any(p.requires_constant_time for p in placements)
        self._declare()

    def bind_to_decoder(self, decoder: DecoderLayout, layers: Collection[int]) -> None:
        self.turns = {layer: number % len(self.each) for number, layer in enumerate(layers)}
        for turn, placement in enumerate(self.each):
            own = (layer for layer in layers if self.turns[layer] == turn)
            placement.bind_to_decoder(decoder, check_not_empty(own, placement))
        self._declare()  # some placements keep more in this decoder

    def _declare(self) -> None:
        for name in ("keeps_world", "keeps_shift", "leaves_text", "keeps_stock", "keeps_rope"):
            setattr(self, name, all(getattr(p, name) for p in self.each))

    def head_channels(self, head: HeadLayout) -> list[int]:
        return [c for placement in self.each for c in placement.head_channels(head)]

    def place(self, cameras: Cameras, matrices: Matrices, head: HeadLayout) -> EncodedCameras:
        return EncodedByLayer([p.place(cameras, matrices, head) for p in self.each], self.turns.__getitem__)


class EncodedByLayer(EncodedGroup):
    """One of several hooks in each layer.

    Args:
        members: The hooks; None is stock attention.
        choose: Returns the number of the member that acts in a layer.
    """

    def __init__(self, members: Sequence[EncodedCameras | None], choose: Callable[[int], int]) -> None:
        super().__init__(members)
        self.choose = choose

    def at_layer(self, layer: int, hidden_states: Tensor, rope: Rope) -> EncodedCameras | None:
        member = self.members[self.choose(layer)]
        return None if member is None else member.at_layer(layer, hidden_states, rope)


def _where(mask: Bool[Tensor, "heads 1"], transformed: Tensor, stock: Tensor) -> Tensor:
    """Select heads; stock heads are padded with zeros, or cut, to the width of the transformed ones."""
    appended = transformed.shape[-1] - stock.shape[-1]
    return torch.where(mask, transformed, F.pad(stock, (0, appended)) if appended else stock)


def check_numbers(name: str, chosen: list[int], count: int) -> None:
    """Raise InputError unless all chosen numbers are in 0 ... count - 1."""
    if not chosen or min(chosen) < 0 or max(chosen) >= count:
        raise InputError(f"the decoder has {name} 0 to {count - 1}, got {chosen}")


def check_not_empty(layers: Iterable[int], module: nn.Module) -> list[int]:
    """Return the layers, or raise InputError if there are none and the module would have no effect."""
    own = list(layers)
    if not own:
        raise InputError(f"{type(module).__name__} acts in no layer: change the layers of the subsets around it")
    return own


# ---- Camera encodings in the Gated DeltaNet layers of a hybrid decoder ----------------------------------------------

LINEAR = "linear"  # before the terms q, k, v and o of these layers


class DeltaNetLayers(EncodingWrapper):
    """An encoding in the Gated DeltaNet layers of a hybrid decoder (Qwen3.5), in place of its full attention.

    It transforms q, k and v behind the convolution, and the output before the gated norm. The layer writes
    S_t = g_t S_(t-1) + b_t k_t (v_t - g_t k_t^T S_(t-1))^T and reads o_t = q_t^T S_t. It is linear in v, so matrices on
    values and their inverses on outputs are exact whatever they are. But it multiplies keys with keys as well as with
    queries: only orthogonal matrices keep k_i^T k_j a function of relative poses and keys at length 1. There are no
    positions to share channels with. Without this class an encoding acts in full attention alone; for both, `Compose`
    one of each.

    Args:
        encoding: Acts on values and outputs (`apply_to: vo`), or on q and k by orthogonal matrices: GTA's rotations
            (`pose_component: rotation`), `PointRoPE`, `PoseAxis`. A `LayerSubset` inside chooses among these layers.

    Raises:
        InputError: An encoding whose matrices on q and k are not orthogonal or depend on the looking view, or that acts
            on no channels of a head.

    Example:
        >>> from zoo import DeltaNetLayers, GTA, PRoPE, UnrotatedChannels
        >>> DeltaNetLayers(PRoPE(UnrotatedChannels(), apply_to="vo")).symmetries.world_views
        True
        >>> DeltaNetLayers(GTA(UnrotatedChannels(), pose_component="rotation")).symmetries.shift
        True
    """

    chooses_linear_layers = True

    def __init__(self, encoding: CameraEncoding) -> None:
        super().__init__(encoding)
        for part in _leaves(encoding):
            if part.attends_per_view:
                raise InputError(
                    f"DeltaNetLayers: {type(part).__name__} turns keys anew for each view that looks, and a recurrent "
                    "state has read each key once: put it beside DeltaNetLayers in a Compose, in full attention"
                )
            if not part.is_orthogonal:
                raise InputError(
                    f"DeltaNetLayers: {type(part).__name__} multiplies queries and keys by matrices that are not "
                    "orthogonal, and the delta rule multiplies keys with keys, where they do not cancel: set apply_to "
                    "vo, or take GTA with pose_component rotation; a class of your own whose matrices are orthogonal "
                    "says so by is_orthogonal, or keeps_rotations of a MatrixEncoding"
                )
        self.head: HeadLayout | None = None

    @property
    def symmetries(self) -> Symmetries:
        return replace(super().symmetries, shift=True)  # no position reaches these layers

    def touched_channels(self, head: HeadLayout) -> set[tuple[str, int]]:
        own = self.head or HeadLayout(head.dim, ())
        return {(f"{LINEAR} {term}", channel) for term, channel in self.encoding.touched_channels(own)}

    def bind_to_decoder(self, decoder: DecoderLayout, layers: Collection[int]) -> None:
        if decoder.linear is None or not decoder.linear.layers:
            raise InputError("DeltaNetLayers: this decoder has no Gated DeltaNet layers: take a Qwen3.5")
        self.head = decoder.linear.head
        for part in _leaves(self.encoding):
            if not part.touched_channels(self.head):
                raise InputError(f"DeltaNetLayers: {type(part).__name__} acts on no channels of a Gated DeltaNet head")
        if any(isinstance(part, HeadSubset) for part in self.encoding.modules()):
            raise InputError("DeltaNetLayers: queries have fewer heads than values there: leave HeadSubset out")
        super().bind_to_decoder(decoder.linear, decoder.linear.layers)

    def encode(self, cameras: Cameras, head: HeadLayout, dtype: torch.dtype = torch.float32) -> EncodedCameras:
        assert self.head is not None, "bind_to_decoder comes before encode"
        return EncodedLinearLayers([self.encoding.encode(cameras, self.head, dtype)])


class EncodedLinearLayers(EncodedGroup):
    """The hooks of one other encoding in Gated DeltaNet layers; full attention is stock."""

    def at_layer(self, layer: int, hidden_states: Tensor, rope: Rope) -> EncodedCameras | None:
        return None

    def at_linear_layer(self, layer: int, hidden_states: Tensor) -> EncodedCameras | None:
        no_rope = hidden_states.new_empty(*hidden_states.shape[:2], 0)
        return self.acting[0].at_layer(layer, hidden_states, (no_rope, no_rope))


def _leaves(encoding: CameraEncoding) -> Iterator[CameraEncoding]:
    for part in encoding.parts:
        yield from _leaves(part)
    if not encoding.parts:
        yield encoding
