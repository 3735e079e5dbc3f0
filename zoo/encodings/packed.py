"""An encoding of padded rows, in the attention of sequences that have several of them."""

from __future__ import annotations

from collections.abc import Mapping
from copy import copy
from typing import Any

from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask

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
        self.block_masks: dict[int, BlockMask] = {}  # of the rows: slow to build, the same in all layers

    @property
    def raw_depths(self) -> Mapping[int, Tensor]:
        return self.encoding.raw_depths

    def at_layer(self, layer: int, hidden_states: Tensor, rope: Rope) -> EncodedCameras | None:
        unpack = self.packing.unpack
        own = self.encoding.at_layer(layer, unpack(hidden_states), (unpack(rope[0]), unpack(rope[1])))
        if own is None:
            return None
        other = copy(self)
        other.encoding = own
        return other

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
        output, _ = self.encoding.attend(attention, q, k, v, self._unpacked(mask))
        return self.packing.pack(output), None

    def transform_outputs(self, o: Tensor) -> Tensor:
        return self.packing.pack(self.encoding.transform_outputs(self.packing.unpack(o)))

    def _unpacked(self, mask: Any) -> Any:
        """The mask of the rows."""
        if not isinstance(mask, BlockMask):
            return unpack_mask(mask, self.packing)
        if id(mask) not in self.block_masks:
            self.block_masks[id(mask)] = unpack_mask(mask, self.packing)  # it reads the mask, whose id stays its own
        return self.block_masks[id(mask)]

    def _packed(self, q: Tensor, k: Tensor) -> QK:
        return self.packing.pack(q), self.packing.pack(k)
