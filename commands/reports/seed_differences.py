"""Differences between settings of which several seeds were trained."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from commands.reports.bootstrap import RESAMPLES, observed, seed_intervals, smallest_shown
from commands.reports.compare import asked_of
from commands.reports.loaded_runs import Run, measures
from commands.reports.seeds import group_by_seed
from commands.reports.table import Cell, Interval, Table, percent

HEADINGS = ("Runs", "Measure", "Difference", "By seed and question", "By seed and scene", "Could show", "Seeds")


def seed_differences(runs: Sequence[Run]) -> list[Table]:
    """Compare each group of runs that differ in the seed alone with the first one that was asked the same questions.

    Of two groups all measures are shown, of more the means of all. A difference whose interval holds 0 has the smallest
    one that could have been shown.
    """
    base, *others = [group for group in group_by_seed(runs) if all(run.answers for run in group)] or [[]]
    compared = [group for group in others if {*map(_test_of, group)} == {*map(_test_of, base)}]
    if not compared:
        return []
    chosen = measures(base[0].benchmark) if len(compared) == 1 else ("All micro", "All macro")
    rows = tuple(row for group in compared for row in _rows(base, group) if row[1] in chosen)
    title = (
        f"Differences from {_names(base)}, in points; 95 % intervals of a bootstrap, {RESAMPLES:,} resamples of seeds "
        "and of questions or scenes; what a null result could have shown, in four of five repetitions"
    )
    return [Table(title, HEADINGS, rows, signed=True).without_duplicate(HEADINGS[3], HEADINGS[4])]


def _rows(base: Sequence[Run], group: Sequence[Run]) -> list[tuple[Cell, ...]]:
    asked, benchmark = base[0].answers, base[0].benchmark
    kinds, scenes = [answer.question_type for answer in asked], [answer.scene for answer in asked]
    group, is_paired = _in_pairs(base, group)
    first, second = (_scores(each, [answer.id for answer in asked]) for each in (base, group))
    now = observed((second.mean(0) - first.mean(0))[:, None], kinds, benchmark)[:, 0]
    by_question, by_scene = (
        seed_intervals(first, second, kinds, clusters, benchmark, paired=is_paired)
        for clusters in (range(len(asked)), scenes)
    )
    rows: list[tuple[Cell, ...]] = []
    for place, measure in enumerate(measures(benchmark)):
        if np.isnan(now[place]):
            continue
        low, high = by_scene[:, place].tolist()
        shown = f"{percent(smallest_shown(low, high)):.1f}" if low <= 0 <= high else ""
        intervals: list[Interval] = [(float(a), float(b)) for a, b in (by_question[:, place], by_scene[:, place])]
        overlap = "" if is_paired else _overlap(base, group, measure)
        rows.append((_names(group), measure, float(now[place]), *intervals, shown, overlap))
    return rows


def _in_pairs(base: Sequence[Run], group: Sequence[Run]) -> tuple[Sequence[Run], bool]:
    """Return the runs of a group in the order of the base's weights, if both tested the same, and whether they did."""
    of_weights = {run.weights: run for run in group}
    wanted = [run.weights for run in base]
    if None in wanted or of_weights.keys() != set(wanted) or not len(of_weights) == len(group) == len(base):
        return group, False
    return [of_weights[weights] for weights in wanted], True


def _overlap(base: Sequence[Run], group: Sequence[Run], measure: str) -> str:
    ours, theirs = ([score for run in each if (score := run.score(measure)) is not None] for each in (group, base))
    return "overlap" if ours and theirs and min(ours) <= max(theirs) and min(theirs) <= max(ours) else ""


def _scores(group: Sequence[Run], ids: Sequence[str]) -> Float[np.ndarray, "S Q"]:
    return np.array([[run.scores[id] for id in ids] for run in group])


def _test_of(run: Run) -> tuple[frozenset[tuple[str, ...]], str]:
    return asked_of(run), run.metrics["scorer"]


def _names(group: Sequence[Run]) -> str:
    return ", ".join(run.name for run in group)
