"""How the next token of an answer is chosen from its logits."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from zoo.errors import InputError
from zoo.precision import to_float32

# of logits and a number in [0, 1) per row, if there are some: ids, and their log-probabilities where they are drawn
TokenChoice = Callable[[Tensor, Tensor | None], tuple[Tensor, Tensor | None]]


def greedy(logits: Float[Tensor, "n V"], draws: Float[Tensor, " n"] | None = None) -> tuple[Int[Tensor, " n"], None]:
    """Choose the token of the largest logit."""
    return logits.argmax(-1), None


@dataclass(frozen=True)
class Sampling:
    """Draw tokens: among the most likely ones by `top_k`, and among those by `top_p`, as transformers does.

    Args:
        temperature: Divides the logits.
        top_p: Draw among the most likely tokens that together have this probability.
        top_k: Draw among this number of the most likely tokens; null is all.
        excluded: Ids that are never drawn, such as placeholders of visual tokens.

    Raises:
        InputError: A number out of its range.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int | None = None
    excluded: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        for name, is_right, wanted in (
            ("temperature", self.temperature > 0, "above 0"),
            ("top_p", 0 < self.top_p <= 1, "above 0, up to 1"),
            ("top_k", self.top_k is None or self.top_k >= 1, "at least 1"),
        ):
            if not is_right:
                raise InputError(f"sampling with {name} {getattr(self, name)}: {wanted}")

    def __call__(
        self, logits: Float[Tensor, "n V"], draws: Float[Tensor, " n"] | None = None
    ) -> tuple[Int[Tensor, " n"], Float[Tensor, " n"]]:
        """Return tokens and their log-probabilities at this temperature, among all tokens.

        Args:
            logits: Of the next token of each answer.
            draws: A number in [0, 1) per answer, of which its token is a function; None draws by torch's generator of
                the device.
        """
        log_probs = (to_float32(logits) / self.temperature).log_softmax(-1)
        probs = log_probs.exp().nan_to_num(1.0)  # the caller reports them
        for excluded in self.excluded:  # a list of them as an index would be copied to a GPU, which waits
            probs[:, excluded] = 0.0
        if self.top_k is not None and self.top_k < probs.shape[-1]:
            probs = probs.where(probs >= probs.topk(self.top_k).values[:, -1:], 0.0)
        if self.top_p < 1:
            ordered, order = probs.sort(-1, descending=True)
            before = ordered.cumsum(-1) - ordered
            kept = before < self.top_p * ordered.sum(-1, keepdim=True)
            probs = torch.zeros_like(probs).scatter(-1, order, ordered * kept)
        if draws is None:
            # as `torch.multinomial`, without its checks, for which a GPU waits
            ids = (probs / torch.empty_like(probs).exponential_()).argmax(-1, keepdim=True)
        else:
            bounds = probs.double().cumsum(-1)  # the first token whose bound is above the draw
            ids = torch.searchsorted(bounds, draws.double()[:, None] * bounds[:, -1:], right=True)
        return ids[:, 0], log_probs.gather(-1, ids)[:, 0]
