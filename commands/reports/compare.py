"""Pairwise comparison of runs on the same questions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from commands.reports.bootstrap import RESAMPLES, intervals, observed
from commands.reports.columns import measures
from commands.reports.predictions import Answer
from commands.reports.runs import Run
from zoo.errors import InputError

Interval = tuple[float, float]
ASKED = ("question_type", "ground_truth", "scene", "question")


@dataclass(frozen=True)
class Difference:
    """Score of the second run minus score of the first, in 0..1, with 95 % intervals."""

    value: float
    by_question: Interval
    by_scene: Interval | None  # None if all questions are about one scene


@dataclass(frozen=True)
class Comparisons:
    """Comparisons of pairs of runs (i, j), i < j.

    Attributes:
        pairs: the difference in each measure that has questions.
        refused: the reason why a pair isn't compared.
    """

    pairs: dict[tuple[int, int], dict[str, Difference]]
    refused: dict[tuple[int, int], str]


def refuse_other_questions(a: Run, b: Run) -> None:
    """Raise InputError unless two runs have the same questions and scorer."""
    for run in (a, b):
        if not run.answers:
            raise InputError(f"{run.name} has no answers to compare")
    first, second = ({answer.id: answer for answer in run.answers} for run in (a, b))
    for run, own, others, other in ((a, first, second, b), (b, second, first, a)):
        if only := own.keys() - others.keys():
            raise InputError(
                f"{len(only)} of {len(own)} questions of {run.name}, such as {min(only)}, are not among the "
                f"{len(others)} of {other.name}"
            )
    for id, answer in first.items():
        for what in ASKED:
            asked = [str(getattr(question, what)) for question in (answer, second[id])]
            if asked[0] != asked[1]:
                raise InputError(f"question {id}: {what} differs between {a.name} and {b.name}: {' | '.join(asked)}")
    scorers = [run.metrics["scorer"] for run in (a, b) if run.metrics]
    if scorers[0] != scorers[1]:
        raise InputError(f"{a.name} and {b.name} were scored by different scorers: {' and '.join(scorers)}")


def compare(runs: Sequence[Run], *, resamples: int = RESAMPLES) -> Comparisons:
    """Compare every pair of runs; runs with the same questions share the draws."""
    refused: dict[tuple[int, int], str] = {}
    groups: list[list[int]] = []  # runs with the same questions
    for place, run in enumerate(runs):
        for group in groups:
            try:
                refuse_other_questions(runs[group[0]], run)
            except InputError:
                continue
            group.append(place)
            break
        else:
            groups.append([place])
    pairs: dict[tuple[int, int], dict[str, Difference]] = {}
    for group in groups:
        pairs |= _pairs(runs, group, resamples) if len(group) > 1 else {}
    for i, j in combinations(range(len(runs)), 2):
        if (i, j) not in pairs:
            try:
                refuse_other_questions(runs[i], runs[j])
            except InputError as error:
                refused[i, j] = str(error)
    return Comparisons(pairs, refused)


def _pairs(runs: Sequence[Run], group: Sequence[int], resamples: int) -> dict[tuple[int, int], dict[str, Difference]]:
    asked: tuple[Answer, ...] = runs[group[0]].answers
    kinds, scenes = [answer.question_type for answer in asked], [answer.scene for answer in asked]
    scores = {place: np.array([runs[place].scores[answer.id] for answer in asked]) for place in group}
    pairs = list(combinations(group, 2))
    differences = np.stack([scores[j] - scores[i] for i, j in pairs], axis=1)
    benchmark = runs[group[0]].benchmark
    now = observed(differences, kinds, benchmark)
    by_question = intervals(differences, kinds, range(len(asked)), benchmark, resamples=resamples)
    by_scene = None
    if len(set(scenes)) > 1:
        by_scene = intervals(differences, kinds, scenes, benchmark, resamples=resamples)
    return {
        pair: {
            measure: Difference(
                float(now[m, p]),
                _interval(by_question[:, m, p]),
                None if by_scene is None else _interval(by_scene[:, m, p]),
            )
            for m, measure in enumerate(measures(benchmark))
            if not np.isnan(now[m, p])
        }
        for p, pair in enumerate(pairs)
    }


def _interval(bounds: np.ndarray) -> Interval:
    return float(bounds[0]), float(bounds[1])
