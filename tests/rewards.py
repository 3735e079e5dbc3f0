"""A user's reward, named by its class path."""

from __future__ import annotations

from collections.abc import Sequence

from zoo.sequences.batch import Record
from zoo.tasks import Reward


class Brevity(Reward):
    """Fewer characters are better: something that a model with random weights can learn from."""

    def __call__(self, answers: Sequence[str], records: Sequence[Record]) -> list[float | None]:
        """See `Reward`."""
        return [-len(answer) / 10 for answer in answers]
