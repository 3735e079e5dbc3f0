"""An encoding of padded rows, in the attention of sequences that have several of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from zoo.encodings.block_masks import unpack_mask
from zoo.encodings.encoded import QK, Attention, EncodedCameras, Rope
from zoo.sequences.scene_packing import ScenePacking


class PackedEncoding(EncodedCameras):
    """The hooks of an encoding of padded rows in the attention of packed sequences.

    Args:
        encoding: Of the rows.
        packing: Of the same rows.
    """

    def __init__(self, encoding: EncodedCameras, packing: ScenePacking) -> None:
        super().__init__(packing.shape[1])
        self.encoding, self.packing = encoding, packing

    @property
    def raw_depths(self) -> Mapping[int, Tensor]:
        return self.encoding.raw_depths

    def at_layer(self, layer: int, hidden_states: Tensor, rope: Rope) -> EncodedCameras | None:
        unpack = self.packing.unpack
        own = self.encoding.at_layer(layer, unpack(hidden_states), (unpack(rope[0]), unpack(rope[1])))
        return None if own is None else PackedEncoding(own, self.packing)

    def before_rope(self, q: Tensor, k: Tensor) -> QK:
        return self._packed(*self.encoding.before_rope(self.packing.unpack(q), self.packing.unpack(k)))

    def after_rope(self, q: Tensor, k: Tensor) -> QK:
        return self._packed(*self.encoding.after_rope(self.packing.unpack(q), self.packing.unpack(k)))

    def transform_values(self, v: Tensor) -> Tensor:
        return self.packing.pack(self.encoding.transform_values(self.packing.unpack(v)))

    def attend(self, attention: Attention, q: Tensor, k: Tensor, v: Tensor, mask: Any) -> tuple[Tensor, Tensor | None]:
        if not self.encoding.attends_per_view:
            return attention(q, k, v, mask)
        q, k, v = (self.packing.unpack(x.transpose(1, 2)).transpose(1, 2) for x in (q, k, v))
        output, _ = self.encoding.attend(attention, q, k, v, unpack_mask(mask, self.packing))
        return self.packing.pack(output), None

    def transform_outputs(self, o: Tensor) -> Tensor:
        return self.packing.pack(self.encoding.transform_outputs(self.packing.unpack(o)))

    def _packed(self, q: Tensor, k: Tensor) -> QK:
        return self.packing.pack(q), self.packing.pack(k)
