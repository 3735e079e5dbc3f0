"""Extra channels of queries, keys and values for the cameras, beside the model's own."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from functools import partial, reduce
from itertools import combinations
from operator import and_
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F

from zoo.cameras import Cameras
from zoo.encodings.base import (
    QK,
    Attention,
    CameraEncoding,
    EncodedCameras,
    EncodedGroup,
    Rope,
    Symmetries,
    ZeroChannels,
)
from zoo.encodings.channel_blocks import CameraMatrices, ChannelBlock
from zoo.encodings.decoder_layout import DecoderLayout, HeadLayout
from zoo.encodings.placements import DeltaNetLayers, Matrices, Placement
from zoo.encodings.pose_axis import PoseIndex
from zoo.errors import InputError
from zoo.sequences.time_index import TimeIndex


class ExtraChannels(Placement):
    """Extra channels per head, projected from the hidden states of visual tokens; zeros for text.

    The model's own channels and RoPE are unchanged. The projections are learned; those of queries and outputs start at
    zero, so the untrained model is the stock one. Text has zeros in these channels, so the invariance to a change of
    world holds with text in the sequence. A batch without cameras gets no extra channels. Otherwise text equals the
    stock model up to the order of summation in wider heads.

    Args:
        channels: Extra channels per head, a multiple of four; of eight for flash attention.
    """

    leaves_text = True
    keeps_stock = False

    def __init__(self, channels: int = 8) -> None:
        super().__init__()
        if channels < 4 or channels % 4:
            raise InputError(f"the number of extra channels must be a multiple of four, got {channels}")
        self.channels = channels
        self.layers: nn.ModuleDict | None = None

    def bind_to_decoder(self, decoder: DecoderLayout, layers: Collection[int]) -> None:
        projections = {str(layer): ExtraChannelProjections(decoder, self.channels) for layer in layers}
        self.layers = nn.ModuleDict(projections).to(decoder.device)

    def place(self, cameras: Cameras, matrices: Matrices, head: HeadLayout) -> EncodedCameras:
        assert self.layers is not None, "bind_to_decoder comes before encode"
        encoded = CameraMatrices(cameras, ChannelBlock(range(self.channels)), True, **matrices)
        return EncodedCameras(encoded.num_tokens) if encoded.is_empty else ExtraChannelCameras(encoded, self.layers)


class ExtraChannelProjections(nn.Module):
    """Projections of one layer: to extra channels of q, k and v, and from each head's extra outputs to its others."""

    def __init__(self, decoder: DecoderLayout, channels: int) -> None:
        super().__init__()
        self.heads = (decoder.num_heads, decoder.num_key_value_heads, decoder.num_key_value_heads)
        self.q, self.k, self.v = (nn.Linear(decoder.hidden_size, n * channels, bias=False) for n in self.heads)
        self.o = nn.Parameter(torch.zeros(decoder.num_heads, channels, decoder.head.dim))
        nn.init.zeros_(self.q.weight)

    def forward(self, hidden_states: Float[Tensor, "B L W"]) -> list[Float[Tensor, "B L heads d"]]:
        projected = (F.linear(hidden_states, layer.weight.to(hidden_states)) for layer in (self.q, self.k, self.v))
        return [x.unflatten(-1, (heads, -1)) for x, heads in zip(projected, self.heads, strict=True)]


class ExtraChannelCameras(EncodedCameras):
    """The cameras of a forward pass, and the projections of all layers."""

    def __init__(self, cameras: CameraMatrices, layers: nn.ModuleDict) -> None:
        super().__init__(cameras.num_tokens)
        self.cameras, self.layers = cameras, layers

    def at_layer(self, layer: int, hidden_states: Tensor, rope: Rope) -> EncodedCameras:
        projections = self.layers[str(layer)]
        assert isinstance(projections, ExtraChannelProjections)
        return _ExtraChannelsAtLayer(self.cameras, hidden_states, projections)

    def for_decode_step(self) -> ZeroChannels:
        return ZeroChannels(len(self.cameras.block.channels))


class _ExtraChannelsAtLayer(EncodedCameras):
    def __init__(self, cameras: CameraMatrices, hidden_states: Tensor, projections: ExtraChannelProjections) -> None:
        super().__init__(cameras.num_tokens)
        self.cameras, self.projections = cameras, projections
        self.visual: Bool[Tensor, "B L 1 1"] = (cameras.index >= 0)[..., None, None]
        self.q, self.k, self.v = (x * self.visual for x in projections(hidden_states))

    def after_rope(self, q: Tensor, k: Tensor) -> QK:
        extra_q, extra_k = self.cameras.after_rope(self.q, self.k)
        return torch.cat((q, extra_q), -1), torch.cat((k, extra_k), -1)

    def transform_values(self, v: Tensor) -> Tensor:
        return torch.cat((v, self.cameras.transform_values(self.v)), -1)

    def transform_outputs(self, o: Tensor) -> Tensor:
        own, extra = o.split((o.shape[-1] - self.q.shape[-1], self.q.shape[-1]), -1)
        extra = self.cameras.transform_outputs(extra) * self.visual
        return own + torch.einsum("blhe,hed->blhd", extra, self.projections.o.to(extra))


# ---- Composition of several encodings -------------------------------------------------------------------------------

COMMON_HEAD = HeadLayout.in_row(128, (16, 24, 24))


class Compose(CameraEncoding):
    """Several encodings applied in sequence, each with its own reference view and scale.

    It has the symmetries that all of them have, except that world invariance is lost if two of them act on the same
    channels: relative poses cancel for the last one, but not for one around it that uses cameras (`ValueRoPE` does
    not). Whether channels overlap is decided for the decoder's heads, before it is bound to one for 128 channels with
    sections of 16, 24 and 24 frequencies, as if all encodings acted in every head and layer of their kind.

    Args:
        encodings: In the order in which they transform q, k and v; outputs are transformed in reverse order. An
            encoding on `ExtraChannels` must be the first, so that the others do not transform what it adds to outputs.
    """

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
                    f"are those of the stock decoder: leave out {' and '.join(others)}"
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
