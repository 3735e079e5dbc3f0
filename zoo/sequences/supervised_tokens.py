"""The tokens of a batch of sequences that are learned from, answer by answer."""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Int
from torch import Tensor

from zoo.sequences.packing import IGNORED


class SupervisedTokens(NamedTuple):
    """The supervised tokens of S sequences, sequence by sequence.

    An answer is a run of them: the end of its turn is supervised as well, and the next turn's question is not.

    Attributes:
        places: Of each in the flattened batch.
        ids: Its id.
        lengths: The supervised tokens of its answer.
        num_answers: Answers of each sequence.
    """

    places: Int[Tensor, " M"]
    ids: Int[Tensor, " M"]
    lengths: Int[Tensor, " M"]
    num_answers: list[int]

    @classmethod
    def of(cls, labels: Int[Tensor, "S L"]) -> SupervisedTokens:
        """Find the supervised tokens; the first token of a sequence has none in front of it that could predict it.

        Args:
            labels: The supervised ids, `IGNORED` elsewhere.
        """
        is_supervised = labels != IGNORED
        is_supervised[:, :1] = False
        starts = is_supervised.clone()
        starts[:, 1:] &= ~is_supervised[:, :-1]
        places = is_supervised.flatten().nonzero()[:, 0]
        answer = starts.flatten().cumsum(0)[places] - 1
        lengths = torch.bincount(answer)[answer] if len(answer) else answer
        return cls(places, labels.flatten()[places], lengths, starts.sum(1).tolist())
