"""Composition of several encodings."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from functools import partial, reduce
from itertools import combinations
from operator import and_
from typing import Any

from torch import Tensor, nn

from zoo.cameras import Cameras
from zoo.encodings.base import CameraEncoding
from zoo.encodings.decoder_layout import DecoderLayout, HeadLayout
from zoo.encodings.encoded import QK, Attention, EncodedCameras, EncodedGroup
from zoo.encodings.extra_channels import ExtraChannels
from zoo.encodings.linear_layers import DeltaNetLayers
from zoo.encodings.pose_index import PoseIndex
from zoo.encodings.symmetries import Symmetries
from zoo.errors import InputError
from zoo.sequences.time_index import TimeIndex

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
