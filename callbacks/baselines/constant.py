"""The best constant answer to the questions of a type; of the test's own answers, an upper bound of any constant."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

import numpy as np

from zoo.benchmarks import Benchmark
from zoo.benchmarks.scorers import THRESHOLDS, to_float

MOST_TEXTS = 10  # of free answers, the most frequent ones that are tried
SAME = 1e-6  # sums of scores in float32
ROUNDING = 1e-5  # relative; above the rounding of a written constant, and of scorers in float32


def best_constant(truths: Sequence[str], question_type: str, benchmark: Benchmark, scorer: str) -> str:
    """Return the answer that scores best if it is given to all questions.

    Args:
        truths: The right answers to questions of one type, at least one.
        question_type: Their type.
        benchmark: The benchmark of the questions.
        scorer: Name of its scorer.

    Example:
        >>> from zoo.benchmarks import VSIBench
        >>> benchmark = VSIBench()
        >>> best_constant(["2", "2", "9"], min(benchmark.numeric_types), benchmark, "spatial_mllm")
        '2'
    """
    truths = sorted(truths)  # of equals the same one, whatever the order of the questions
    counts = Counter(truths)
    best, best_score = "", -1.0
    is_numeric = question_type in benchmark.numeric_types
    for candidate, bound in _numbers(truths) if is_numeric else _texts(truths):
        if bound <= best_score + SAME:
            break
        score = sum(n * benchmark.score(candidate, truth, question_type, scorer) for truth, n in counts.items())
        if score > best_score + SAME:
            best, best_score = candidate, score
    return best


def _texts(truths: Sequence[str]) -> Iterator[tuple[str, float]]:
    """Yield the most frequent accepted answers, each with a bound of its summed score."""
    accepted = Counter(answer for truth in truths for answer in truth.split("\n"))
    for answer, _ in accepted.most_common(MOST_TEXTS):
        yield answer, float(len(truths))


def _numbers(truths: Sequence[str]) -> Iterator[tuple[str, float]]:
    """Yield numbers by descending bound of their summed mean relative accuracy; of equals, right answers first.

    A number scores a tenth for each interval of the width of a threshold about a right answer that it lies in. So the
    best one is a right answer, an end of an interval, or between two neighboring ends.
    """
    parsed = np.array([number for truth in truths if (number := to_float(truth)) is not None])
    numbers = parsed[np.isfinite(parsed)]
    widths = np.outer(abs(numbers), 1 - THRESHOLDS)
    ends = np.unique([numbers[:, None] - widths, numbers[:, None] + widths])
    candidates = np.unique(np.concatenate([numbers, ends, (ends[1:] + ends[:-1]) / 2]))
    slack = ROUNDING * abs(numbers)[:, None]
    starts, stops = (np.sort((numbers[:, None] + sign * (widths + slack)).ravel()) for sign in (-1, 1))
    covered = np.searchsorted(starts, candidates, "right") - np.searchsorted(stops, candidates, "left")
    for place in np.lexsort([~np.isin(candidates, numbers), -covered]):
        yield f"{candidates[place]:.6g}", covered[place] / len(THRESHOLDS)
