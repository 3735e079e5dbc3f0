"""Next-token prediction of the answers."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from zoo.errors import InputError
from zoo.objectives.base import Objective
from zoo.objectives.decoded import Decoded
from zoo.precision import to_float32


class LanguageModeling(Objective):
    """Cross-entropy (nats) of the supervised tokens, averaged as `average` says; only their logits are computed.

    Args:
        weight: Above 0, since every model answers questions.
    """

    def __init__(self, weight: float = 1.0) -> None:
        super().__init__(weight)
        if not weight:
            raise InputError("--model.objectives: LanguageModeling needs a weight above 0: all models answer questions")

    def forward(self, decoded: Decoded) -> dict[str, Tensor]:
        """See `Objective`."""
        sequences = decoded.sequences
        logits = decoded.lm_head(decoded.last_hidden_state.flatten(0, 1)[sequences.answer_places])
        losses = F.cross_entropy(to_float32(logits), sequences.answer_ids, reduction="none")
        return {"cross_entropy": decoded.mean_over_answers(losses)}
