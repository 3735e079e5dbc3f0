"""How the next token of an answer is chosen from its logits."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from zoo.precision import to_float32

# ids, and their log-probabilities where they are drawn
TokenChoice = Callable[[Tensor], tuple[Tensor, Tensor | None]]


def greedy(logits: Float[Tensor, "n V"]) -> tuple[Int[Tensor, " n"], None]:
    """Choose the token of the largest logit."""
    return logits.argmax(-1), None


@dataclass(frozen=True)
class Sampling:
    """Draw tokens, by torch's generator of the device.

    Args:
        temperature: Divides the logits.
        top_p: Draw among the most likely tokens that together have this probability.
        excluded: Ids that are never drawn, such as placeholders of visual tokens.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    excluded: tuple[int, ...] = ()

    def __call__(self, logits: Float[Tensor, "n V"]) -> tuple[Int[Tensor, " n"], Float[Tensor, " n"]]:
        """Return tokens and their log-probabilities at this temperature, among all tokens."""
        log_probs = (to_float32(logits) / self.temperature).log_softmax(-1)
        probs = log_probs.exp().nan_to_num(1.0)  # multinomial refuses NaN, which the caller reports
        if self.excluded:
            probs[:, list(self.excluded)] = 0.0
        if self.top_p < 1:
            ordered, order = probs.sort(-1, descending=True)
            before = ordered.cumsum(-1) - ordered
            probs = torch.zeros_like(probs).scatter(-1, order, ordered * (before < self.top_p))
        ids = torch.multinomial(probs, 1)
        return ids[:, 0], log_probs.gather(-1, ids)[:, 0]
