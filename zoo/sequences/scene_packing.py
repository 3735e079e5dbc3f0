"""Training sequences of several scenes, one behind the other without padding.

A row of a batch is a scene with its questions; rows are padded to the longest. The decoder, which takes most of a step,
gets them in few sequences instead, in which each token attends to its own row alone. What depends on rows (positions,
cameras, losses) is computed from padded rows.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Int, Shaped
from torch import Tensor

from zoo.movable import Movable
from zoo.sequences.masks import PREFIX


class ScenePacking(Movable):
    """Where each token of a batch of rows is in sequences of several rows.

    Rows stay in their order, so that visual tokens do as well.

    Args:
        mask: The tokens that are not padding.
        group: The group of each token of a row, see `zoo.sequences.masks`.
        visual_places: The place of each visual token in the flattened rows.
        max_tokens: Most tokens of a sequence; a longer row has one of its own. None packs all rows into one sequence.

    Attributes:
        rows: The tokens that are not padding, in the flattened batch.
        places: The place of each in the flattened sequences.
        shape: Number of sequences, and tokens of the longest.
        group: The group of each token of the sequences, of no other row; -1 in padding.
        prefix_group: The group of the prefix of each token's row.
        visual_places: The place of each visual token in the flattened sequences.
    """

    def __init__(
        self,
        mask: Bool[Tensor, "S L"],
        group: Int[Tensor, "S L"],
        visual_places: Int[Tensor, " M"],
        max_tokens: int | None = None,
    ) -> None:
        starts: list[tuple[int, int]] = []  # of each row: its sequence, and its first place there
        lengths: list[int] = []  # of each sequence
        for length in mask.sum(1).tolist():
            if not lengths or (max_tokens is not None and lengths[-1] + length > max_tokens):
                lengths.append(0)
            starts.append((len(lengths) - 1, lengths[-1]))
            lengths[-1] += length
        self.padded, self.shape = tuple(mask.shape), (len(lengths), max(lengths))
        first = torch.tensor([sequence * self.shape[1] + start for sequence, start in starts])
        self.rows: Int[Tensor, " N"] = mask.flatten().nonzero()[:, 0]
        self.places: Int[Tensor, " N"] = (first[:, None] + mask.cumsum(1) - 1).flatten()[self.rows]
        place = torch.zeros(mask.numel(), dtype=torch.long)
        place[self.rows] = self.places
        self.visual_places: Int[Tensor, " M"] = place[visual_places]
        own_first = torch.arange(len(mask))[:, None] * (int(group.max()) + 1)
        self.group: Int[Tensor, "B T"] = self.pack(group + own_first, -1)
        self.prefix_group: Int[Tensor, "B T"] = self.pack((own_first + PREFIX).expand_as(group), -1)

    def pack(self, values: Shaped[Tensor, "S L ..."], fill: int | float = 0) -> Shaped[Tensor, "B T ..."]:
        """Move values of the rows to the places of the sequences."""
        return _moved(values, self.rows, self.places, self.shape, fill)

    def unpack(self, values: Shaped[Tensor, "B T ..."], fill: int | float = 0) -> Shaped[Tensor, "S L ..."]:
        """Move values of the sequences to the places of the rows."""
        return _moved(values, self.places, self.rows, self.padded, fill)


def _moved(values: Tensor, source: Tensor, target: Tensor, shape: tuple[int, ...], fill: int | float) -> Tensor:
    moved = values.new_full((shape[0] * shape[1], *values.shape[2:]), fill)
    return moved.index_copy(0, target, values.flatten(0, 1).index_select(0, source)).unflatten(0, shape)
