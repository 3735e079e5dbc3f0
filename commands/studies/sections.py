"""The sections of a document that compare: settings with a baseline, or tests with the own test of the same models."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from commands.reports.bootstrap import could_show, seed_intervals
from commands.reports.loaded_runs import measures
from commands.studies.results import Result
from commands.studies.scores import Scores
from commands.studies.study_file import MACRO, OWN, Comparison
from zoo.benchmarks import find_benchmark


class Cell(NamedTuple):
    """What a score is of."""

    setting: str
    column: str
    test: str = OWN


def table(headings: list[str], rows: list[list[str]]) -> str:
    """Return a table in Markdown."""
    lines = [headings, ["---"] * len(headings), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in lines)


def titled(column: str, scores: Scores) -> str:
    """Return the heading of a column."""
    return f"`{column}`" if column else scores.study.score


def section(each: Comparison, scores: Scores) -> str:
    """Return the table of a comparison, without rows that have no score; of its column alone if it names one."""
    columns, rows, intervals = _columns(each, scores), list[list[str]](), list[list[str]]()
    own = columns[0]
    for cell, base in pairs(each, scores):
        of = [scores.cell(cell.setting, column, cell.test) for column in columns]
        name = scores.study.label_of(cell.setting)  # a difference is in the measure of its row
        first = [name, cell.test] if each.tests else [name]
        if any(of):
            rows.append([*first, *of, change(cell, base, scores)])
            intervals.append(difference_intervals(cell, base, scores))
    if not rows:
        return "Not measured yet."
    compared = [*(["tested with"] if each.tests else []), *(titled(column, scores) for column in columns)]
    against = f"minus *{each.baseline}*" if each.baseline else "minus the own test"
    shown = ["95 %, by seed and scene", "95 %, by seed and question"]
    if all(by_scene == by_question for by_scene, by_question in intervals):  # scenes with one question each
        shown = shown[:1]
    whole = [[*row, *ends[: len(shown)]] for row, ends in zip(rows, intervals, strict=True)]
    return table(["setting", *compared, f"{titled(own, scores)}, {against}", *shown], whole)


def _columns(each: Comparison, scores: Scores) -> list[str]:
    """The columns that a section shows; the first is the one in which the scores are compared."""
    columns = [each.column] if each.column else list(scores.study.columns)
    return columns if each.baseline is not None else columns[:1]


def pairs(each: Comparison, scores: Scores) -> Iterator[tuple[Cell, Cell]]:
    """Yield the cells of a comparison, each with the one that it is compared with."""
    column = _columns(each, scores)[0]
    if each.baseline is not None:
        for test in each.tests or [OWN]:
            for name in dict.fromkeys([each.baseline, *each.settings]):
                yield Cell(name, column, test), Cell(each.baseline, column, test)
    else:
        for name in each.settings:
            for test in each.tests:
                if test in scores.study.settings[name].tests:
                    yield Cell(name, column, test), Cell(name, column)


def is_measured(each: Comparison, scores: Scores) -> bool:
    """Return whether all cells that a section shows are measured with all seeds."""
    shown = {cell for pair in pairs(each, scores) for cell in pair}
    shown |= {cell._replace(column=column) for cell in shown for column in _columns(each, scores)}
    return all(scores.is_complete(*cell) for cell in shown if cell.column in scores.study.columns_of(cell.setting))


def change(cell: Cell, base: Cell, scores: Scores) -> str:
    """Return the score of a cell minus that of another, over the seeds that both have, and whether these overlap."""
    kind, both = scores.study.score_of(cell.setting, cell.test), _in_pairs(cell, base, scores)
    if any(ours.questions != theirs.questions for ours, theirs in both) and _is_of_same_models(cell, base):
        return ""  # a test with other questions
    found = [(a.scores[kind], b.scores[kind]) for a, b in both if kind in a.scores and kind in b.scores]
    if not found:
        return ""
    ours, theirs = zip(*found, strict=True)
    overlaps = len(found) > 1 and min(ours) <= max(theirs) and min(theirs) <= max(ours)
    note = ", the seeds overlap" if overlaps and not _is_of_same_models(cell, base) else ""
    return f"{statistics.mean(ours) - statistics.mean(theirs):+.3f}{scores.mark(sum(both, ()))}{note}"


def difference_intervals(cell: Cell, base: Cell, scores: Scores) -> list[str]:
    """Return the 95 % intervals of a change by scene and by question, over the seeds that both cells have.

    Of two settings the seeds are resampled as well, of a further test the trained models. An interval that holds 0 has
    the smallest difference that could have been shown. There is none where all scores are equal, seed by seed: models
    that have learned nothing but one answer don't tell how well the study would have told them apart.
    """
    both = _in_pairs(cell, base, scores)
    if not both:
        return ["", ""]
    if len({result.questions for pair in both for result in pair}) > 1:
        return ["other questions"] * 2
    same_models = _is_of_same_models(cell, base)
    if len(both) == 1 and not same_models:
        return ["none: one seed of each"] * 2
    questions, kind = scores.results.questions_of(both[0][0]), scores.study.score_of(cell.setting, cell.test)
    kept = [number for number, own in enumerate(questions.question_types) if kind in (MACRO, own)]
    if not kept:
        return ["", ""]
    ours, theirs = (np.array([result.question_scores for result in each])[:, kept] for each in zip(*both, strict=True))
    if not same_models and np.array_equal(ours, theirs):  # as of two settings that give one and the same answer
        return ["none: equal in each question"] * 2
    types, scenes = ([each[number] for number in kept] for each in (questions.question_types, questions.scenes))
    benchmark = find_benchmark(questions.benchmark)
    # of one question type, the mean over questions; of all, that over question types
    measure = measures(benchmark).index("All macro" if kind == MACRO else "All micro")

    def interval(clusters: list[str] | list[int]) -> str:
        bounds = seed_intervals(theirs, ours, types, clusters, benchmark, paired=same_models)
        low, high = bounds[:, measure].tolist()
        shown = could_show(low, high)
        null = "" if shown is None else f" (could show {f'{shown:.3f}' if shown < 1 else 'none'})"
        low, high = np.clip([low, high], -1, 1)  # of scores in 0..1
        return f"{low:+.3f} to {high:+.3f}{null}" if len(set(clusters)) > 1 else ""

    by_scene = interval(scenes)
    has_one_each = len(set(scenes)) == len(kept)  # question per scene: then both are the same
    return [by_scene, by_scene if has_one_each else interval(kept)]


def _is_of_same_models(cell: Cell, base: Cell) -> bool:
    """Return whether two cells are tests of the same trained models."""
    return (cell.setting, cell.column) == (base.setting, base.column)


def _in_pairs(cell: Cell, base: Cell, scores: Scores) -> list[tuple[Result, Result]]:
    """Return the results of the seeds that both cells have; none of a cell and itself."""
    ours, theirs = scores.found(*cell), scores.found(*base)
    return [(ours[seed], theirs[seed]) for seed in ours if seed in theirs and cell != base]
