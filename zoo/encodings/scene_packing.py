"""Training sequences of several scenes, one behind the other without padding.

A row of a batch is a scene with its questions; rows are padded to the longest. The decoder, which takes most of a step,
gets them in few sequences instead, in which each token attends to its own row alone. What depends on rows (positions,
cameras, losses) is computed from padded rows as before.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Bool, Int, Shaped
from torch import Tensor

from zoo.encodings.encoded import QK, EncodedCameras, Rope
from zoo.errors import InputError
from zoo.sequences.packing import PREFIX, PackedScenes

if TYPE_CHECKING:
    from zoo.backbones.base import Backbone


class ScenePacking:
    """Where each token of a batch of rows is in sequences of several rows.

    Rows stay in their order, so that visual tokens do as well.

    Args:
        mask: the tokens that are not padding.
        bound: most tokens of a sequence; a longer row has one of its own. None packs all rows into one sequence.

    Attributes:
        rows: the tokens that are not padding, in the flattened batch.
        places: the place of each in the flattened sequences.
        shape: number of sequences, and tokens of the longest.
    """

    def __init__(self, mask: Bool[Tensor, "S L"], bound: int | None = None) -> None:
        starts: list[tuple[int, int]] = []  # of each row: its sequence, and its first place there
        lengths: list[int] = []  # of each sequence
        for length in mask.sum(1).tolist():
            if not lengths or (bound is not None and lengths[-1] + length > bound):
                lengths.append(0)
            starts.append((len(lengths) - 1, lengths[-1]))
            lengths[-1] += length
        self.padded, self.shape = mask.shape, (len(lengths), max(lengths))
        first = torch.tensor([sequence * self.shape[1] + start for sequence, start in starts], device=mask.device)
        self.rows: Int[Tensor, " N"] = mask.flatten().nonzero()[:, 0]
        self.places: Int[Tensor, " N"] = (first[:, None] + mask.cumsum(1) - 1).flatten()[self.rows]

    def pack(self, values: Shaped[Tensor, "S L ..."], fill: int | float = 0) -> Shaped[Tensor, "B T ..."]:
        """Values of the rows at the places of the sequences."""
        return _moved(values, self.rows, self.places, self.shape, fill)

    def unpack(self, values: Shaped[Tensor, "B T ..."], fill: int | float = 0) -> Shaped[Tensor, "S L ..."]:
        """Values of the sequences at the places of the rows."""
        return _moved(values, self.places, self.rows, self.padded, fill)

    def decoder_inputs(
        self, backbone: Backbone, inputs: Mapping[str, Any], questions: PackedScenes | None = None
    ) -> dict[str, Any]:
        """The decoder's inputs for these rows, as sequences.

        Args:
            backbone: whose attention takes masks.
            inputs: of the rows, from `SpatialVLM.build_inputs`.
            questions: the rows, if they have several questions.

        Raises:
            InputError: an attention backend without custom masks.
        """
        if not backbone.supports_custom_mask:
            raise InputError(
                f"--data.pack_scenes: {backbone.attn_implementation} takes no mask of several scenes, choose "
                "--model.backbone.attn_implementation flex_attention on a GPU, or sdpa"
            )
        # 1. Groups that differ between rows, each with the number of its row's prefix.
        own = torch.full_like(inputs["input_ids"], PREFIX) if questions is None else questions.group
        positions = inputs["position_ids"] - (0 if questions is None else questions.position_offset)
        first = torch.arange(len(own), device=own.device)[:, None] * (int(own.max()) + 1)
        groups, prefixes = self.pack(own + first, -1), self.pack((first + PREFIX).expand_as(own), -1)
        packed = {
            **inputs,
            "input_ids": self.pack(inputs["input_ids"]),
            "position_ids": torch.stack([self.pack(axis) for axis in positions]),
            "attention_mask": backbone.question_mask(groups, groups, prefixes),
        }
        # 2. What else is at the places of tokens.
        if (encoding := inputs.get("camera_encoding")) is not None:
            packed["camera_encoding"] = PackedEncoding(encoding, self)
        if (features := inputs.get("deepstack")) is not None:
            place = features.places.new_zeros(own.numel()).index_copy(0, self.rows, self.places)
            packed["deepstack"] = features._replace(places=place[features.places])
        return packed


def _moved(values: Tensor, source: Tensor, target: Tensor, shape: tuple[int, ...], fill: int | float) -> Tensor:
    moved = values.new_full((shape[0] * shape[1], *values.shape[2:]), fill)
    return moved.index_copy(0, target, values.flatten(0, 1).index_select(0, source)).unflatten(0, shape)


class PackedEncoding(EncodedCameras):
    """The hooks of an encoding of padded rows in the attention of packed sequences.

    Args:
        encoding: of the rows.
        packing: of the same rows.
    """

    def __init__(self, encoding: EncodedCameras, packing: ScenePacking) -> None:
        super().__init__(packing.shape[1])
        self.encoding, self.packing = encoding, packing

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

    def transform_outputs(self, o: Tensor) -> Tensor:
        return self.packing.pack(self.encoding.transform_outputs(self.packing.unpack(o)))

    def _packed(self, q: Tensor, k: Tensor) -> QK:
        return self.packing.pack(q), self.packing.pack(k)
