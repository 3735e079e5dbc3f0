"""Several encodings at once."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace
from functools import reduce
from itertools import combinations
from operator import and_
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn
from transformers import Qwen2_5_VLTextModel

from zoo.cameras import Cameras
from zoo.encodings.base import QK, CameraEncoding, EncodedCameras, Rope
from zoo.encodings.extra_channels import ExtraChannels
from zoo.encodings.symmetries import Symmetries
from zoo.errors import InputError
from zoo.time_index import TimeIndex

RELEASED = 128, (16, 24, 24)  # channels of a head, mRoPE's sections


class Compose(CameraEncoding):
    """Several encodings at once, one after the other; each has its own reference view and scale.

    It keeps what all of them keep, but for the world where two act on the same channels: relative poses cancel for the
    one that acts last, and not for one around it that goes by cameras (`ValueRoPE` does not). On which channels they
    act is told for the heads of the released models, as if all acted in every head and layer.

    Args:
        encodings: in the order in which they act on q, k and v; on the outputs in the opposite order. One that
            appends channels comes first: what they add to the outputs must not be taken for a view's own.
    """

    def __init__(self, encodings: list[CameraEncoding]) -> None:
        super().__init__(reference=None)
        if not encodings:
            raise InputError("a Compose needs encodings")
        if any(isinstance(module, ExtraChannels) for encoding in encodings[1:] for module in encoding.modules()):
            raise InputError("an encoding on ExtraChannels comes first in a Compose, and alone of its kind")
        if sum(encoding.time_index is not None for encoding in encodings) > 1:
            raise InputError("a Compose may hold one PoseIndex: there is one time")
        self.each = tuple(encodings)
        self.uses_cameras = any(encoding.uses_cameras for encoding in encodings)
        if self.requires_constant_time and self.time_index is not None and not self.time_index.constant:
            raise InputError(
                "a Compose may not hold a PoseIndex, by which each view has another time, beside an encoding on "
                "mRoPE's T section, which needs one time for all: give that encoding another placement"
            )
        self.encodings = nn.ModuleList(encodings)  # registers what they learn

    @property
    def requires_constant_time(self) -> bool:
        return any(encoding.requires_constant_time for encoding in self.each)

    @property
    def time_index(self) -> TimeIndex | None:
        return next((e.time_index for e in self.each if e.time_index is not None), None)

    @property
    def symmetries(self) -> Symmetries:
        kept = reduce(and_, (encoding.symmetries for encoding in self.each))
        if any(outer.uses_cameras and _meet(outer, inner) for outer, inner in combinations(self.each, 2)):
            kept = replace(kept, world_views=False, world_text=False)
        return kept

    def touched_channels(self, head_dim: int, mrope_section: Sequence[int]) -> set[tuple[str, int]]:
        """See `CameraEncoding.touched_channels`."""
        return set().union(*(encoding.touched_channels(head_dim, mrope_section) for encoding in self.each))

    def bind_to_decoder(self, language_model: Qwen2_5_VLTextModel, layers: Collection[int]) -> None:
        for encoding in self.each:
            encoding.bind_to_decoder(language_model, layers)

    def encode(self, cameras: Cameras, **decoder: Any) -> Composed:
        return Composed([encoding.encode(cameras, **decoder) for encoding in self.each])


class Composed(EncodedCameras):
    """What a `Compose` does to one forward pass."""

    def __init__(self, each: Sequence[EncodedCameras]) -> None:
        super().__init__(next((e.num_tokens for e in each if e.num_tokens is not None), None))
        self.each = each

    def at_layer(self, layer: int, hidden_states: Float[Tensor, "B L W"], rope: Rope) -> EncodedCameras | None:
        return _stacked([e.at_layer(layer, hidden_states, rope) for e in self.each])

    def for_decode_step(self) -> EncodedCameras | None:
        return _stacked([e.for_decode_step() for e in self.each])

    def repeat_interleave(self, copies: int) -> Composed:
        return Composed([e.repeat_interleave(copies) for e in self.each])

    def before_rope(self, q: Tensor, k: Tensor) -> QK:
        for e in self.each:
            q, k = e.before_rope(q, k)
        return q, k

    def after_rope(self, q: Tensor, k: Tensor) -> QK:
        for e in self.each:
            q, k = e.after_rope(q, k)
        return q, k

    def values(self, v: Tensor) -> Tensor:
        for e in self.each:
            v = e.values(v)
        return v

    def transform_outputs(self, o: Tensor) -> Tensor:
        for e in reversed(self.each):
            o = e.transform_outputs(o)
        return o


def _meet(outer: CameraEncoding, inner: CameraEncoding) -> bool:
    try:
        return not outer.touched_channels(*RELEASED).isdisjoint(inner.touched_channels(*RELEASED))
    except InputError:  # it is made for other heads
        return True


def _stacked(each: list[EncodedCameras | None]) -> EncodedCameras | None:
    acting = [e for e in each if e is not None]
    return Composed(acting) if acting else None
