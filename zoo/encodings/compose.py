"""Encodings made of others: several combined, one in some layers or heads, in Gated DeltaNet, or of a strength."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import replace
from functools import partial, reduce
from itertools import combinations
from operator import and_
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Bool
from torch import Tensor, nn
from torch.nn import functional as F

from zoo.cameras import Cameras
from zoo.encodings.base import (
    QK,
    Attention,
    CameraEncoding,
    DecoderLayout,
    EncodedByLayer,
    EncodedCameras,
    EncodedGroup,
    HeadLayout,
    Rope,
    Symmetries,
)
from zoo.encodings.placements import ExtraChannels, check_not_empty
from zoo.encodings.prope import MatrixEncoding
from zoo.encodings.rotary import PoseIndex
from zoo.errors import InputError, check_choice
from zoo.sequences.time_index import TimeIndex

# ---- Several encodings together --------------------------------------------------------------------------------------

COMMON_HEAD = HeadLayout.in_row(128, (16, 24, 24))


class Compose(CameraEncoding):
    """Several encodings applied in sequence, each with its own reference view and scale.

    A composition has the symmetries that all of its encodings have, with one exception. World invariance is lost if an
    encoding that uses cameras (`ValueRoPE` does not) acts on channels of a later one. The later one's poses still
    cancel to relative poses, those of the earlier one do not. Whether channels overlap is decided for the decoder's
    heads. Before binding to a decoder, heads of 128 channels with sections of 16, 24 and 24 frequencies are assumed.
    All encodings are treated as acting in every head and layer of their kind.

    Args:
        encodings: Encodings in the order in which they transform q, k and v. Outputs are transformed in reverse order.
            An encoding on `ExtraChannels` must be the first, so that the others do not transform what it adds to
            outputs.
    """

    wrapped_option = "encodings"

    def __init__(self, encodings: list[CameraEncoding]) -> None:
        super().__init__(reference=None)
        if not encodings:
            raise InputError("Compose requires at least one encoding")
        if any(isinstance(module, ExtraChannels) for encoding in encodings[1:] for module in encoding.modules()):
            raise InputError("in a Compose only the first encoding may use ExtraChannels: reorder the encodings")
        if per_view := [type(each).__name__ for each in encodings if each.attends_per_view]:
            others = [type(each).__name__ for each in encodings if not isinstance(each, PoseIndex | DeltaNetLayers)]
            others.remove(per_view[0])
            if others:
                raise InputError(
                    f"a Compose of {per_view[0]} takes PoseIndex and DeltaNetLayers alone, since its keys in the cache "
                    f"are those of the original decoder: leave out {' and '.join(others)}"
                )
        if sum(encoding.time_index is not None for encoding in encodings) > 1:
            raise InputError("a Compose may contain only one PoseIndex: leave the others out")
        self.parts, self.head = tuple(encodings), COMMON_HEAD
        if self.requires_constant_time and self.time_index is not None and not self.time_index.constant:
            raise InputError(
                "a PoseIndex gives each view its own time, but an encoding on mRoPE's T section requires one time for "
                "all views: give that encoding another placement"
            )
        self.encodings = nn.ModuleList(encodings)  # registers their parameters

    def bind_to_decoder(self, decoder: DecoderLayout, layers: Collection[int]) -> None:
        super().bind_to_decoder(decoder, layers)
        self.head = decoder.head
        for pair in combinations(self.parts, 2):
            taken = and_(*(part.touched_channels(decoder.head) for part in pair))
            if taken and any(part.owns_channels for part in pair):
                names = " and ".join(type(part).__name__ for part in pair)
                raise InputError(
                    f"{names} share {len(taken)} channels: move one of them, by its placement or PoseAxis's count"
                )

    @property
    def time_index(self) -> TimeIndex | None:
        return next((e.time_index for e in self.parts if e.time_index is not None), None)

    @property
    def symmetries(self) -> Symmetries:
        common = reduce(and_, (encoding.symmetries for encoding in self.parts))
        pairs = combinations(self.parts, 2)
        if any(outer.uses_cameras and _overlap(outer, inner, self.head) for outer, inner in pairs):
            common = replace(common, world_views=False, world_text=False)
        return common

    def encode(self, cameras: Cameras, *head: Any, **options: Any) -> EncodedCameras:
        return Composed([encoding.encode(cameras, *head, **options) for encoding in self.parts])


class Composed(EncodedGroup):
    """Apply all members in sequence, and to the outputs in reverse order."""

    def before_rope(self, q: Tensor, k: Tensor) -> QK:
        for member in self.acting:
            q, k = member.before_rope(q, k)
        return q, k

    def after_rope(self, q: Tensor, k: Tensor) -> QK:
        for member in self.acting:
            q, k = member.after_rope(q, k)
        return q, k

    def transform_values(self, v: Tensor) -> Tensor:
        for member in self.acting:
            v = member.transform_values(v)
        return v

    def attend(self, attention: Attention, q: Tensor, k: Tensor, v: Tensor, mask: Any) -> tuple[Tensor, Tensor | None]:
        for member in self.acting:
            attention = partial(member.attend, attention)
        return attention(q, k, v, mask)

    def transform_outputs(self, o: Tensor) -> Tensor:
        for member in reversed(self.acting):
            o = member.transform_outputs(o)
        return o


def _overlap(outer: CameraEncoding, inner: CameraEncoding, head: HeadLayout) -> bool:
    try:
        return not outer.touched_channels(head).isdisjoint(inner.touched_channels(head))
    except InputError:  # an encoding for heads of another size
        return True


# ---- One encoding in some layers or heads ----------------------------------------------------------------------------


class EncodingWrapper(CameraEncoding):
    """Base class of encodings that apply another one partially, with the other's reference view and scale."""

    wrapped_option: ClassVar[str | None] = "encoding"

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
    """An encoding in some layers. The other layers keep the original attention.

    Args:
        encoding: The encoding in these layers.
        layers: Layer numbers from 0, or `even` or `odd`. In a hybrid decoder layers of both kinds are counted: Qwen3.5
            has full attention in layers 3, 7, 11, ..., so `odd` is all of these, and `even` raises InputError.
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
        """Return whether the encoding acts in a layer."""
        return layer in self.layers if not isinstance(self.layers, str) else layer % 2 == (self.layers == "odd")


class HeadSubset(EncodingWrapper):
    """An encoding in some heads. The other heads keep the original attention.

    Args:
        encoding: The encoding in these heads.
        key_value_heads: Numbers of k and v heads, from 0. The query heads that share them are included.
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
    """Another encoding's hooks in some heads. Channels that it appends are zeros in the other heads.

    Args:
        encoded: The hooks of the other encoding.
        query_mask: True for its heads of q and o.
        kv_mask: True for its heads of k and v.
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


def _where(mask: Bool[Tensor, "heads 1"], transformed: Tensor, original: Tensor) -> Tensor:
    """Select heads. Original heads are zero-padded or cut to the width of the transformed ones."""
    appended = transformed.shape[-1] - original.shape[-1]
    return torch.where(mask, transformed, F.pad(original, (0, appended)) if appended else original)


def check_numbers(name: str, chosen: list[int], count: int) -> None:
    """Raise InputError unless all chosen numbers are in 0 ... count - 1."""
    if not chosen or min(chosen) < 0 or max(chosen) >= count:
        raise InputError(f"the decoder has {name} 0 to {count - 1}, got {chosen}")


# ---- One encoding between the original attention and its own ---------------------------------------------------------


class LearnedStrength(EncodingWrapper):
    """A matrix encoding with a learned strength a per layer: its cameras are R^a, a t and K^a, see `Cameras.powers`.

    At a = 0 all matrices are the identity, so the training starts with the original model, bit for bit, unless the
    placement demands a constant time (`TemporalSection`). The gradient of a does not vanish there. At a = 1 the
    encoding is the one inside. The powers are of its canonical cameras: relative to its reference view, in its unit of
    translations, and for `RayEncoding` of the frames of rays.

    At a = 1 all symmetries of the encoding inside hold. In between, R_i^a (R_j^a)^-1 is no function of the relative
    pose, so a change of world cancels only with a reference view. The other symmetries hold at every strength.

    Adam moves a strength by about the learning rate per step. `learning_rates.encoding` of 1e-2 moves it within some
    hundred steps. A decoder's rate, such as 1e-5, leaves it at its start.

    Args:
        encoding: An encoding by matrices: PRoPE, GTA, CaPE or RayEncoding. Subsets of layers and heads go around this
            class, not inside.
        start: The strength of every layer before training.

    Example:
        >>> from zoo import LayerSubset, LearnedStrength, PRoPE
        >>> encoding = LayerSubset(LearnedStrength(PRoPE()), "odd")
        >>> encoding.symmetries.world_views, encoding.symmetries.canonical
        (False, True)
    """

    encoding: MatrixEncoding

    def __init__(self, encoding: CameraEncoding, start: int | float = 0.0) -> None:
        if not isinstance(encoding, MatrixEncoding):
            raise InputError(
                f"LearnedStrength takes an encoding by matrices (PRoPE, GTA, CaPE, RayEncoding), not "
                f"{type(encoding).__name__}: put subsets and compositions around LearnedStrength"
            )
        super().__init__(encoding)
        self.start, self.layers = start, list[int]()
        self.strengths: nn.Parameter | None = None

    @property
    def symmetries(self) -> Symmetries:
        has_reference = self.encoding.reference is not None
        return replace(super().symmetries, world_views=False, world_text=False, canonical=has_reference)

    def bind_to_decoder(self, decoder: DecoderLayout, layers: Collection[int]) -> None:
        super().bind_to_decoder(decoder, layers)
        self.layers = list(layers)
        self.strengths = nn.Parameter(torch.full((len(layers),), float(self.start), device=decoder.device))

    def encode(self, cameras: Cameras, head: HeadLayout, dtype: torch.dtype = torch.float32) -> EncodedCameras:
        assert self.strengths is not None, "bind_to_decoder comes before encode"
        canonical, samples, layers = self.encoding.canonical(cameras), len(cameras), len(self.layers)
        # the samples of all layers in one batch, because a call per layer launches many small kernels
        sample = torch.arange(samples, device=canonical.world_to_camera.device).repeat(layers)
        a = self.strengths.double().repeat_interleave(samples)[:, None]
        every = self.encoding.row_matrices(canonical[sample].powers(a, a, a), torch.promote_types(dtype, torch.float32))
        of_layers = zip(*(matrices.chunk(layers) for matrices in every.values()), strict=True)
        placed = [
            self.encoding.placement.place(canonical, dict(zip(every, own, strict=True)), head) for own in of_layers
        ]
        return EncodedByLayer(placed, self.layers.index)


# ---- One encoding in the Gated DeltaNet layers of a hybrid decoder ---------------------------------------------------

LINEAR = "linear"  # prefix of the terms q, k, v and o of these layers


class DeltaNetLayers(EncodingWrapper):
    """An encoding in the Gated DeltaNet layers of a hybrid decoder (Qwen3.5), instead of its full attention.

    It transforms q, k and v after the convolution, and the output before the gated norm. The layer writes S_t = g_t
    S_(t-1) + b_t k_t (v_t - g_t k_t^T S_(t-1))^T and reads o_t = q_t^T S_t. The layer is linear in v, so any matrices
    on values with their inverses on outputs are exact. But it multiplies keys with keys as well as with queries, so
    only orthogonal matrices keep k_i^T k_j a function of relative poses and keep keys at length 1. There are no
    positions to share channels with. Without this class an encoding acts in full attention only. For both kinds of
    layers, `Compose` one of each.

    Args:
        encoding: Acts on values and outputs (`apply_to: vo`), or on q and k by orthogonal matrices: GTA's rotations
            (`pose_component: rotation`), `PointRoPE`, `PoseAxis`. A `LayerSubset` inside chooses among the Gated
            DeltaNet layers.

    Raises:
        InputError: The encoding's matrices on q and k are not orthogonal or depend on the attending view, or it acts on
            no channels of a head.

    Example:
        >>> from zoo import DeltaNetLayers, GTA, PRoPE, UnrotatedChannels
        >>> DeltaNetLayers(PRoPE(UnrotatedChannels(), apply_to="vo")).symmetries.world_views
        True
        >>> DeltaNetLayers(GTA(UnrotatedChannels(), pose_component="rotation")).symmetries.shift
        True
    """

    chooses_linear_layers = True
    wrapped_option = None  # the heads there have other channels

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
        return replace(super().symmetries, shift=True)  # these layers have no positions

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
    """Another encoding's hooks in Gated DeltaNet layers. Full attention is unchanged."""

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
