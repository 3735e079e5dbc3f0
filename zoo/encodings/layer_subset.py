"""Encodings on some layers only, and placements that take turns from layer to layer."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Any, Literal

from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import Qwen2_5_VLTextModel

from zoo.cameras import Cameras
from zoo.encodings.base import CameraEncoding, EncodedCameras, Rope
from zoo.encodings.placements import Placement, RowMatrices
from zoo.encodings.symmetries import Symmetries
from zoo.errors import InputError, check_choice
from zoo.time_index import TimeIndex


class EncodingWrapper(CameraEncoding):
    """Another encoding that acts in part; it keeps its own reference view and scale."""

    def __init__(self, encoding: CameraEncoding) -> None:
        super().__init__(reference=None)
        if encoding.time_index is not None:
            raise InputError(f"{type(encoding).__name__} acts on position ids, which all layers and heads share")
        self.encoding = encoding
        self.uses_cameras = encoding.uses_cameras

    @property
    def requires_constant_time(self) -> bool:
        return self.encoding.requires_constant_time

    @property
    def time_index(self) -> TimeIndex | None:
        return self.encoding.time_index

    @property
    def symmetries(self) -> Symmetries:
        return self.encoding.symmetries

    def touched_channels(self, head_dim: int, mrope_section: Sequence[int]) -> set[tuple[str, int]]:
        """See `CameraEncoding.touched_channels`: as if it acted in all layers and heads."""
        return self.encoding.touched_channels(head_dim, mrope_section)

    def bind_to_decoder(self, language_model: Qwen2_5_VLTextModel, layers: Collection[int]) -> None:
        self.encoding.bind_to_decoder(language_model, layers)


Every = Literal["even", "odd"]


class LayerSubset(EncodingWrapper):
    """An encoding in some layers; the others are stock attention.

    Args:
        encoding: what acts there.
        layers: their numbers, from 0, or every other one.
    """

    def __init__(self, encoding: CameraEncoding, layers: list[int] | Every = "even") -> None:
        super().__init__(encoding)
        if isinstance(layers, str):
            check_choice("layers", layers, Every)
        self.layers = layers

    def bind_to_decoder(self, language_model: Qwen2_5_VLTextModel, layers: Collection[int]) -> None:
        if not isinstance(self.layers, str):
            check_numbers("layers", self.layers, language_model.config.num_hidden_layers)
        super().bind_to_decoder(language_model, check_any(filter(self.acts_in, layers), self.encoding))

    def encode(self, cameras: Cameras, **decoder: Any) -> EncodedCameras:
        """See `CameraEncoding.encode`."""
        encoded = self.encoding.encode(cameras, **decoder)
        return ByLayer([encoded], lambda layer: 0 if self.acts_in(layer) else None)

    def acts_in(self, layer: int) -> bool:
        """Whether the encoding acts in a layer."""
        return layer in self.layers if not isinstance(self.layers, str) else layer % 2 == (self.layers == "odd")


class AlternateAxes(Placement):
    """Placements that take turns: the first in layer 0, the second in layer 1, and so on, over and over.

    With `LowFrequencies` of the sections w and h, the camera is with x in one layer and with y in the next.

    Args:
        placements: at least two.
    """

    def __init__(self, placements: list[Placement]) -> None:
        super().__init__()
        if len(placements) < 2:
            raise InputError(f"placements take turns if there are two or more, not {len(placements)}")
        self.each = tuple(placements)
        self.placements = nn.ModuleList(placements)  # registers what they learn
        self.requires_constant_time = any(p.requires_constant_time for p in placements)
        for name in ("keeps_world", "keeps_shift", "leaves_text", "keeps_stock", "keeps_rope"):
            setattr(self, name, all(getattr(p, name) for p in placements))

    def bind_to_decoder(self, language_model: Qwen2_5_VLTextModel, layers: Collection[int]) -> None:
        for turn, placement in enumerate(self.each):
            own = (layer for layer in layers if layer % len(self.each) == turn)
            placement.bind_to_decoder(language_model, check_any(own, placement))

    def head_channels(self, head_dim: int, mrope_section: Sequence[int]) -> list[int]:
        return [c for placement in self.each for c in placement.head_channels(head_dim, mrope_section)]

    def place(
        self, index: Int[Tensor, "B L"], matrices: RowMatrices, head_dim: int, mrope_section: Sequence[int]
    ) -> EncodedCameras:
        each = [p.place(index, matrices, head_dim, mrope_section) for p in self.each]
        return ByLayer(each, lambda layer: layer % len(each))


class ByLayer(EncodedCameras):
    """One of several in each layer.

    Args:
        each: to choose from; None is stock attention.
        choose: which of them acts in a layer, or None.
    """

    def __init__(self, each: Sequence[EncodedCameras | None], choose: Callable[[int], int | None]) -> None:
        super().__init__(next((e.num_tokens for e in each if e is not None and e.num_tokens is not None), None))
        self.each, self.choose = each, choose

    def at_layer(self, layer: int, hidden_states: Float[Tensor, "B L W"], rope: Rope) -> EncodedCameras | None:
        chosen = self.choose(layer)
        encoded = None if chosen is None else self.each[chosen]
        return None if encoded is None else encoded.at_layer(layer, hidden_states, rope)

    def for_decode_step(self) -> EncodedCameras | None:
        each = [None if e is None else e.for_decode_step() for e in self.each]
        return ByLayer(each, self.choose) if any(e is not None for e in each) else None

    def repeat_interleave(self, copies: int) -> ByLayer:
        return ByLayer([None if e is None else e.repeat_interleave(copies) for e in self.each], self.choose)


def check_numbers(name: str, chosen: list[int], count: int) -> None:
    """InputError if some of the chosen numbers aren't of 0 to count - 1."""
    if not chosen or min(chosen) < 0 or max(chosen) >= count:
        raise InputError(f"the decoder has {name} 0 to {count - 1}, not {chosen}")


def check_any(layers: Iterable[int], part: nn.Module) -> list[int]:
    """The layers; an InputError if there are none, in which the part would silently do nothing."""
    own = list(layers)
    if not own:
        raise InputError(f"no layer is left for {type(part).__name__} to act in: see the layers that others take")
    return own
