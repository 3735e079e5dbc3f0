"""The scores of a study's rows, and of the blind baselines."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property

from callbacks.baselines import BELOW, NAMES, constant_baseline, is_below
from commands.studies.results import Questions, Result, Results, scores_of
from commands.studies.study_file import OWN, Study
from zoo.benchmarks import find_benchmark
from zoo.errors import InputError

OUTDATED = "†"  # marks a result that other code made


class Scores:
    """The results of the planned tests.

    Args:
        study: The plan.
        results: What is measured.
        codes: The digest of the present code, by the command of a training; results of others are not marked.
    """

    def __init__(self, study: Study, results: Results, codes: Mapping[str, str]) -> None:
        self.study, self.results, self.codes = study, results, codes
        self._constants: dict[str, dict[str, float]] = {}  # by the key of the questions

    def found(self, setting: str, column: str, test: str = OWN) -> dict[int, Result]:
        """Return the results of a cell by seed."""
        if column not in self.study.columns_of(setting):
            return {}
        runs = [self.study.run(setting, column, seed) for seed in self.study.seeds]
        found = {run.seed: self.results.find(run, test) for run in runs}
        return {seed: result for seed, result in found.items() if result is not None}

    def of(self, setting: str, column: str, test: str = OWN) -> list[float]:
        """Return the scores of a cell, one per seed that is measured."""
        kind = self.study.score_of(setting, test)
        found = self.found(setting, column, test).values()
        return [result.scores[kind] for result in found if kind in result.scores]

    def is_complete(self, setting: str, column: str, test: str = OWN) -> bool:
        """Return whether all seeds of a cell are measured."""
        return len(self.found(setting, column, test)) == len(self.study.seeds)

    def is_outdated(self, result: Result) -> bool:
        """Return whether other code than the present made a result, and may differ in what it does."""
        return self.results.is_outdated(result, self.codes.get(result.fit, result.code))

    def cell(self, setting: str, column: str, test: str = OWN) -> str:
        """Return the score of a cell, see `over_seeds`; marked if it is below the best blind baseline."""
        values = self.of(setting, column, test)
        shown = self.over_seeds(values, self.found(setting, column, test).values())
        below = bool(values) and is_below(statistics.mean(values), self.blind(setting, column, test).values())
        return f"{shown} {BELOW}" if below else shown

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
    def baselines(self) -> dict[str, dict[str, float]]:
        """The scores of the blind baselines in each column, by name, in the study's measure."""
        names = [name for name in self.study.settings if self.study.score_of(name) == self.study.score]
        found: dict[str, dict[str, float]] = {}
        for column in self.study.columns:
            own = (self.blind(name, column) for name in names)
            for baseline, score in next(filter(None, own), {}).items():
                found.setdefault(baseline, {})[column] = score
        return found

    def blind(self, setting: str, column: str, test: str = OWN) -> dict[str, float]:
        """Return the scores of the blind baselines of a cell's test, in the measure of its row."""
        result = next(iter(self.found(setting, column, test).values()), None)
        measure = self.study.score_of(setting, test)
        if result is None:
            return {}
        if result.questions not in self._constants:
            self._constants[result.questions] = best_constant(self.results.questions_of(result))
        found = {"constant": self._constants[result.questions], **result.baselines}
        return {name: found[name][measure] for name in NAMES if measure in found.get(name, {})}


def best_constant(questions: Questions) -> dict[str, float]:
    """Return the scores of answering each question type by the constant that scores best."""
    rows = zip(questions.ids, questions.question_types, questions.ground_truths, strict=True)
    records = [{"id": id, "question_type": kind, "ground_truth": truth} for id, kind, truth in rows]
    benchmark = find_benchmark(questions.benchmark)
    if former := set(questions.question_types) - set(benchmark.question_types):
        raise InputError(
            f"results of questions that {questions.benchmark} no longer has, {', '.join(sorted(former))}: remove them"
            " from the results file, and the runs that made them, and train anew"
        )
    found = constant_baseline(records, benchmark, questions.scorer)
    return scores_of(found.scores["constant"])
