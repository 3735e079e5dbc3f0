"""Pairwise comparison of runs on the same questions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from commands.reports.bootstrap import RESAMPLES, intervals, observed
from commands.reports.loaded_runs import MEANS, Run, measures
from commands.reports.table import Interval
from zoo.benchmarks import Benchmark

ONE_SEED = "no interval of a difference between trainings: there is one seed of each"
ASKED = ("question_type", "ground_truth", "scene", "question")


@dataclass(frozen=True)
class Difference:
    """Score of the second run minus score of the first, in 0..1, with 95 % intervals.

    None stands for the interval of a single question, or of questions about a single scene: resampled, it never varies;
    and for those of two trainings, of which other seeds may differ by more.
    """

    value: float
    by_question: Interval | None
    by_scene: Interval | None


@dataclass(frozen=True)
class Comparisons:
    """Comparisons of pairs of runs (i, j), i < j.

    Attributes:
        pairs: The difference in each measure that has questions.
        refused: The reason why a pair isn't compared.
        trainings: The compared pairs of two trainings, which have no interval (`ONE_SEED`).
    """

    pairs: dict[tuple[int, int], dict[str, Difference]]
    refused: dict[tuple[int, int], str]
    trainings: frozenset[tuple[int, int]] = frozenset()


def compare(runs: Sequence[Run], *, resamples: int = RESAMPLES) -> Comparisons:
    """Compare every pair of runs with the same questions and scorer; such runs share the draws."""
    groups: dict[tuple[frozenset[tuple[str, ...]], str | None], list[int]] = {}
    for place, run in enumerate(runs):
        groups.setdefault((asked_of(run), run.metrics.get("scorer")), []).append(place)
    pairs: dict[tuple[int, int], dict[str, Difference]] = {}
    for (asked, _), group in groups.items():
        if asked and len(group) > 1:
            pairs |= _pairs(runs, group, resamples)
    others = [pair for pair in combinations(range(len(runs)), 2) if pair not in pairs]
    trainings = frozenset(pair for pair in pairs if are_trainings(*(runs[place] for place in pair)))
    for pair in trainings:
        pairs[pair] = {measure: Difference(each.value, None, None) for measure, each in pairs[pair].items()}
    return Comparisons(pairs, {(i, j): _why_not(runs[i], runs[j]) for i, j in others}, trainings)


def are_trainings(a: Run, b: Run) -> bool:
    """Return whether two runs tested different weights, some of which the zoo has trained: they depend on a seed."""
    is_trained = any(run.metrics.get("step") is not None for run in (a, b))
    return is_trained and (a.weights is None or a.weights != b.weights)


def asked_of(run: Run) -> frozenset[tuple[str, ...]]:
    """Return the questions of a run."""
    return frozenset((answer.id, *(getattr(answer, what) for what in ASKED)) for answer in run.answers)


def _why_not(a: Run, b: Run) -> str:
    """Return how the questions or scorers of two runs differ."""
    for run in (a, b):
        if not run.answers:
            return f"{run.name} has no answers to compare"
    for run, own, other in ((a, asked_of(a) - asked_of(b), b), (b, asked_of(b) - asked_of(a), a)):
        if own:
            id, *words = min(own)
            return (
                f"{len(own)} of {len(run.answers)} questions of {run.name} are not among the {len(other.answers)} of "
                f"{other.name}, such as {id} ({' | '.join(words)})"
            )
    return f"{a.name} and {b.name} were scored by different scorers: {a.metrics['scorer']} and {b.metrics['scorer']}"


def _pairs(runs: Sequence[Run], group: Sequence[int], resamples: int) -> dict[tuple[int, int], dict[str, Difference]]:
    asked, benchmark = runs[group[0]].answers, runs[group[0]].benchmark
    kinds, scenes = [answer.question_type for answer in asked], [answer.scene for answer in asked]
    scores = {place: np.array([runs[place].scores[answer.id] for answer in asked]) for place in group}
    pairs = list(combinations(group, 2))
    differences = np.stack([scores[j] - scores[i] for i, j in pairs], axis=1)
    now = observed(differences, kinds, benchmark)
    by_question, by_scene = (
        intervals(differences, kinds, clusters, benchmark, resamples=resamples)
        for clusters in (range(len(asked)), scenes)
    )
    found: dict[tuple[int, int], dict[str, Difference]] = {pair: {} for pair in pairs}
    for m, measure in enumerate(measures(benchmark)):
        own = [scene for scene, kind in zip(scenes, kinds, strict=True) if kind in _types_of(measure, benchmark)]
        for p, pair in enumerate(pairs if own else ()):
            found[pair][measure] = Difference(
                float(now[m, p]),
                _interval(by_question[:, m, p]) if len(own) > 1 else None,
                _interval(by_scene[:, m, p]) if len(set(own)) > 1 else None,
            )
    return found


def _types_of(measure: str, benchmark: Benchmark) -> Sequence[str]:
    """Return the question types of a column or a mean."""
    return benchmark.groups[MEANS[measure][0]] if measure in MEANS else benchmark.columns[measure]


def _interval(bounds: np.ndarray) -> Interval:
    return float(bounds[0]), float(bounds[1])
