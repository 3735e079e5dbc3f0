"""Where the questions of packed training sequences are, for layers with a recurrent state."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Int
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from zoo.movable import Movable
from zoo.sequences.masks import PREFIX


class QuestionPlaces(Movable):
    """The N questions of S sequences `[prefix][question 1][question 2]...`, each of which goes on from its prefix.

    Computed on the host, so that no layer waits for a GPU. Places count in the flattened batch, S times L.

    Args:
        group: The group of each token, see `zoo.sequences.masks`; -1 in padding, which is on the right.

    Attributes:
        is_prefix: The tokens of the prefixes.
        row: The sequence of each question.
        prefix_lengths: The tokens of its prefix.
        places: The place of each of its tokens; 0 in the padding behind shorter questions.
        mask: The tokens that are not padding.
        sources: The questions' M tokens, as numbers in the flattened `places`.
        targets: Their places.
    """

    def __init__(self, group: Int[Tensor, "S L"]) -> None:
        self.is_prefix: Bool[Tensor, "S L"] = group == PREFIX
        rows, lengths, places = [], [], []
        for row, groups in enumerate(group):
            for question in range(PREFIX + 1, int(groups.max()) + 1):
                rows.append(row)
                lengths.append(int(self.is_prefix[row].sum()))
                places.append((groups == question).nonzero()[:, 0] + row * group.shape[1])
        self.row: Int[Tensor, " N"] = torch.tensor(rows)
        self.prefix_lengths: Int[Tensor, " N"] = torch.tensor(lengths)
        self.places: Int[Tensor, "N Q"] = pad_sequence(places, batch_first=True)
        counts = torch.tensor([len(own) for own in places])
        self.mask: Bool[Tensor, "N Q"] = torch.arange(self.places.shape[1]) < counts[:, None]
        self.sources: Int[Tensor, " M"] = self.mask.flatten().nonzero()[:, 0]
        self.targets: Int[Tensor, " M"] = torch.cat(places)

    def before(self, count: int) -> tuple[Int[Tensor, "N K"], Bool[Tensor, "N K"]]:
        """Return the places of the last tokens of each question's prefix, and which of them there are.

        Args:
            count: K, their number.
        """
        index = self.prefix_lengths[:, None] - count + torch.arange(count, device=self.row.device)
        return index.clamp(min=0) + self.row[:, None] * self.is_prefix.shape[1], index >= 0
