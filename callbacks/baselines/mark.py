"""The mark of a score that is below the best blind baseline."""

from __future__ import annotations

from collections.abc import Iterable

BELOW = "<"
MEANING = f"{BELOW} below the best blind baseline"
NAMES = {"constant": "best constant answer", "text": "text alone", "cameras": "cameras alone"}
SAME = 1e-6  # the same scores, averaged in another order


def is_below(score: float | None, blind: Iterable[float | None]) -> bool:
    """Return whether a score is below that of some baseline; None is no score."""
    return score is not None and any(each is not None and score < each - SAME for each in blind)
