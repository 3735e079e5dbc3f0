"""The scores of a study's rows, and the best constant answer."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property

import numpy as np

from commands.studies.results import Questions, Result, Results
from commands.studies.study_file import MACRO, OWN, Study
from zoo.benchmarks import Benchmark, find_benchmark

CONSTANT = "best constant answer"
OUTDATED = "†"  # marks a result that other code made
GRID = 500  # constants that are tried beside the right answers themselves


class Scores:
    """The results of the planned tests.

    Args:
        study: The plan.
        results: What is measured.
        codes: The digest of the present code, by the command of a training; results of others are not marked.
    """

    def __init__(self, study: Study, results: Results, codes: Mapping[str, str]) -> None:
        self.study, self.results, self.codes = study, results, codes

    def found(self, setting: str, column: str, test: str = OWN) -> dict[int, Result]:
        """Return the results of a cell by seed."""
        if column not in self.study.columns_of(setting):
            return {}
        runs = [self.study.run(setting, column, seed) for seed in self.study.seeds]
        found = {run.seed: self.results.find(run, test) for run in runs}
        return {seed: result for seed, result in found.items() if result is not None}

    def of(self, setting: str, column: str, test: str = OWN) -> list[float]:
        """Return the scores of a cell, one per seed that is measured."""
        kind = self.study.score_of(setting)
        found = self.found(setting, column, test).values()
        return [result.scores[kind] for result in found if kind in result.scores]

    def is_complete(self, setting: str, column: str, test: str = OWN) -> bool:
        """Return whether all seeds of a cell are measured."""
        return len(self.found(setting, column, test)) == len(self.study.seeds)

    def is_outdated(self, result: Result) -> bool:
        """Return whether other code than the present made a result, and may differ in what it does."""
        return self.results.is_outdated(result, self.codes.get(result.fit, result.code))

    def cell(self, setting: str, column: str, test: str = OWN) -> str:
        """Return the score of a cell, see `over_seeds`."""
        return self.over_seeds(self.of(setting, column, test), self.found(setting, column, test).values())

    def over_seeds(self, values: Sequence[float], results: Iterable[Result], form: str = ".3f") -> str:
        """Return the mean of a value with the least and the greatest, how many seeds if some are missing, and the mark.

        Args:
            values: One per seed that has it.
            results: Where they come from.
            form: Of a number.
        """
        seeds = len(self.study.seeds)
        if not values:
            return ""
        notes = [f"{min(values):{form}} to {max(values):{form}}"] if len(values) > 1 else []
        notes += [f"{len(values)} of {seeds} seeds"] if len(values) < seeds else []
        spread = f" ({', '.join(notes)})" if notes else ""
        return f"{statistics.mean(values):{form}}{spread}{self.mark(results)}"

    @cached_property
    def all_outdated(self) -> bool:
        """Whether other code made all results of the study, so that one sentence says it better than marks."""
        cells = [
            (name, column, test)
            for name, each in self.study.settings.items()
            for test in (OWN, *each.tests)
            for column in self.study.columns
        ]
        results = [result for cell in cells for result in self.found(*cell).values()]
        return bool(results) and all(map(self.is_outdated, results))

    def mark(self, results: Iterable[Result]) -> str:
        """Return the mark of results of which some are outdated, unless all of the study are."""
        return OUTDATED if not self.all_outdated and any(map(self.is_outdated, results)) else ""

    @cached_property
    def constants(self) -> dict[str, float]:
        """The score of the best constant answer in each column, in the study's measure; empty if it isn't shown."""
        names = [name for name in self.study.settings if self.study.score_of(name) == self.study.score]
        best = {}
        for column in self.study.columns if self.study.constant else ():
            first = next((result for name in names for result in self.found(name, column).values()), None)
            if first is not None:
                best[column] = best_constant(self.results.questions_of(first), self.study.score)
        return {column: score for column, score in best.items() if score is not None}


def best_constant(questions: Questions, measure: str) -> float | None:
    """Return the score of answering each question type by the constant that scores best; None without questions."""
    benchmark = find_benchmark(questions.benchmark)
    truths: dict[str, list[str]] = {}
    for kind, truth in zip(questions.question_types, questions.ground_truths, strict=True):
        truths.setdefault(kind, []).append(truth)
    scores = {kind: _best_scores(benchmark, kind, own, questions.scorer) for kind, own in truths.items()}
    if measure == MACRO:
        macro: float | None = benchmark.aggregate(scores)["all"]["macro"]
        return macro
    return statistics.mean(scores[measure]) if measure in scores else None


def _best_scores(benchmark: Benchmark, kind: str, truths: list[str], scorer: str) -> list[float]:
    constants = set(truths)
    if kind in benchmark.numeric_types:
        numbers = [float(truth) for truth in truths]
        constants |= {f"{number:.4g}" for number in np.linspace(min(numbers), max(numbers), GRID)}

    def scores(constant: str) -> list[float]:
        by_truth = {truth: benchmark.score(constant, truth, kind, scorer) for truth in set(truths)}
        return [by_truth[truth] for truth in truths]

    return max(map(scores, sorted(constants)), key=sum)
