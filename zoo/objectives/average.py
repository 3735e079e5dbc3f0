"""How a loss is averaged: over the questions of an optimizer step, or over what one batch happens to hold.

A question is one answer that is learned from: each turn of a conversation is one.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

AverageRule = Literal["questions", "micro_batch_tokens"]


class SceneLoss(NamedTuple):
    """A loss on the visual tokens of a scene.

    Attributes:
        values: In each sequence that shows the scene; any shape behind the first axis.
        known: Where the target is known.
        num_answers: Answers that are learned from in each of these sequences.
    """

    values: Float[Tensor, "rows ..."]
    known: Bool[Tensor, " ..."]
    num_answers: Sequence[int]


class Average(ABC):
    """A rule of averaging the losses of a batch."""

    @abstractmethod
    def over_answers(
        self, losses: Float[Tensor, " M"], lengths: Int[Tensor, " M"], num_answers: int
    ) -> Float[Tensor, ""]:
        """Average the losses of the supervised tokens.

        Args:
            losses: Of each token.
            lengths: The supervised tokens of its answer.
            num_answers: Of the batch.
        """

    @abstractmethod
    def over_scenes(self, losses: Sequence[SceneLoss], num_answers: int) -> Float[Tensor, ""]:
        """Average the losses on visual tokens.

        Args:
            losses: Of at least one scene; of a scene without a known target 0.
            num_answers: Of the batch.
        """


class QuestionAverage(Average):
    """Mean over the questions of a batch, whatever the lengths of their answers.

    The loss of a question is the mean over the tokens of its answer; on visual tokens, the mean over those of its scene
    whose target is known, and 0 where none is. So the losses of batches, weighted by their questions, are the loss of
    all of them together, however questions and scenes are distributed, see `Batch.weight`.
    """

    def over_answers(
        self, losses: Float[Tensor, " M"], lengths: Int[Tensor, " M"], num_answers: int
    ) -> Float[Tensor, ""]:
        """See `Average`."""
        return (losses / lengths).sum() / max(num_answers, 1)  # none where another process learns from them

    def over_scenes(self, losses: Sequence[SceneLoss], num_answers: int) -> Float[Tensor, ""]:
        """See `Average`."""
        total = losses[0].values.new_zeros(())
        for values, known, counts in losses:
            mean = _known(values, known).flatten(1).sum(1) / known.sum().clamp(min=1)
            for row, count in zip(mean, counts, strict=True):  # no tensor of counts: it would be copied to a GPU
                total = total + count * row
        return total / max(num_answers, 1)


class MicroBatchAverage(Average):
    """Mean over the tokens of one batch in one process, as the published scripts train.

    An answer then counts by its share of the tokens of its batch, so the loss of an optimizer step depends on how its
    questions are distributed across processes and batches. On visual tokens it is the mean over those with a known
    target, each scene once.
    """

    def over_answers(
        self, losses: Float[Tensor, " M"], lengths: Int[Tensor, " M"], num_answers: int
    ) -> Float[Tensor, ""]:
        """See `Average`."""
        return losses.sum() / max(len(losses), 1)

    def over_scenes(self, losses: Sequence[SceneLoss], num_answers: int) -> Float[Tensor, ""]:
        """See `Average`."""
        total = torch.stack([_known(values, known).mean(0).sum() for values, known, _ in losses]).sum()
        return total / torch.stack([known.sum() for _, known, _ in losses]).sum().clamp(min=1)


AVERAGES: dict[AverageRule, Average] = {"questions": QuestionAverage(), "micro_batch_tokens": MicroBatchAverage()}


def _known(values: Tensor, known: Tensor) -> Tensor:
    return torch.where(known, values, 0.0)  # an unknown value may be infinite
