"""Encodings on a subset of the layers or heads, and placements that alternate from layer to layer."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Any, Literal

import torch
from jaxtyping import Bool
from torch import Tensor, nn
from torch.nn import functional as F

from zoo.cameras import Cameras
from zoo.encodings.base import CameraEncoding
from zoo.encodings.decoder_layout import DecoderLayout, HeadLayout
from zoo.encodings.encoded import QK, EncodedCameras, EncodedGroup, Rope
from zoo.encodings.placements import Matrices, Placement
from zoo.encodings.symmetries import Symmetries
from zoo.errors import InputError, check_choice


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
