"""The tables of reports and studies as DataFrames of cells, and their formats."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any, Literal

import numpy as np
import pandas as pd
from jaxtyping import Float64
from tabulate import LATEX_ESCAPE_RULES

from commands.reports.scores import MEANS, Tested, option_table, scores_of
from commands.reports.statistics import ONE_SEED, Difference, difference
from commands.responses.results import response_table
from evaluation.baselines import BELOW, MEANING, NAMES, is_below
from zoo.benchmarks import find_benchmark
from zoo.benchmarks.scorers import to_float
from zoo.errors import printable

Format = Literal["text", "markdown", "latex", "csv", "html"]
ALONE = "*"  # marks an interval over scenes alone
LAYER = re.compile(r"\.\d+(?=\.|$)")  # the number of a layer in a parameter's name


@dataclass(frozen=True)
class Cell:
    """A score or a difference in 0..1, which a table shows in percent with one decimal.

    Attributes:
        value: The number; None shows nothing.
        low: The least of several seeds, or the lower end of an interval.
        high: The greatest, or the upper end.
        mark: Follows the number, such as `<`.
        signed: Whether a positive number has its sign.
        short: Leave the ends out of the text, not out of CSV.
    """

    value: float | None
    low: float | None = None
    high: float | None = None
    mark: str = ""
    signed: bool = False
    short: bool = False

    def __str__(self) -> str:
        if self.value is None:
            return ""
        has_ends = self.low is not None and self.high is not None and not self.short
        ends = f" ({self._show(self.low)} to {self._show(self.high)})" if has_ends else ""
        return f"{self._show(self.value)}{ends}{self.mark and f' {self.mark}'}"

    def _show(self, number: float | None) -> str:
        assert number is not None
        return f"{round(100 * number, 1) + 0.0:{'+' if self.signed else ''}.1f}"


def by_setting(tested: Iterable[Tested]) -> dict[str, list[Tested]]:
    """Return the tests of each row, one per seed, by the row's name."""
    groups: dict[tuple[str, str, str], list[Tested]] = {}
    for each in tested:
        groups.setdefault((each.label, each.test, each.group), []).append(each)
    rows: dict[str, list[Tested]] = {}
    for (label, test, _), own in groups.items():
        name = ", ".join(filter(None, (label, test)))
        rows[name if name not in rows else f"{name} ({len(rows)})"] = own
    return rows


def table_measures(tested: Sequence[Tested]) -> list[str]:
    """Return the columns of a results table: the benchmark's that were asked, the means, and corpus measures."""
    columns = [name for name in find_benchmark(tested[0].benchmark).columns if any(name in t.measures for t in tested)]
    kinds = list(dict.fromkeys(kind for each in tested for kind in each.questions["question_type"].unique()))
    corpus = dict.fromkeys(name for each in tested for name in each.corpus)
    return [*(columns or kinds), *(MEANS if len(kinds) > 1 else ()), *corpus]


def score_cell(tests: Sequence[Tested], measure: str, *, short: bool = False) -> Cell:
    """Return the mean over seeds with the least and the greatest, marked if it is below the best blind baseline."""
    scores = scores_of(tests, measure)
    if not scores:
        return Cell(None)
    blind = {name: baseline_score(tests, name, measure) for name in baseline_names(tests)}
    mean = float(np.mean(scores))
    low, high = (min(scores), max(scores)) if len(scores) > 1 else (None, None)
    mark = BELOW if is_below(mean, blind) else ""
    return Cell(mean, low, high, mark, short=short)


def baseline_names(tested: Iterable[Tested]) -> list[str]:
    """Return the names of the tests' baselines, the names in `evaluation.baselines` first."""
    found = dict.fromkeys(name for each in tested for name in each.baselines)
    return [*(name for name in NAMES if name in found), *(name for name in found if name not in NAMES)]


def baseline_score(tests: Sequence[Tested], name: str, measure: str) -> float | None:
    """Return the score of a baseline; of tests that differ in it, the mean. None if a test lacks it."""
    scores = [each.blind(name, measure) for each in tests if each.score(measure) is not None]
    return None if not scores or None in scores else float(np.mean(scores))  # type: ignore[arg-type]


def score_table(tested: Sequence[Tested], base: str, measures: Sequence[str]) -> pd.DataFrame:
    """Return the table of results: a row per setting, and below them the blind baselines.

    The last columns are the difference from a setting in the macro mean, or in the only measure, and the smallest
    difference that the seeds could show.

    Args:
        tested: Tests of the same questions.
        base: The row that is subtracted.
        measures: The columns. Of more than a few, the means alone have their ranges, and the others in CSV.
    """
    settings = by_setting(tested)
    compared = "macro" if "macro" in measures else measures[0]
    has_seeds = any(len(tests) > 1 for tests in settings.values())
    rows: dict[str, dict[str, Any]] = {}
    for name, tests in settings.items():
        rows[name] = {m: score_cell(tests, m, short=len(measures) > 3 and m not in MEANS) for m in measures}
        if has_seeds:
            rows[name]["seeds"] = len(tests)
        if name != base:
            found = difference(tests, settings[base], compared)
            rows[name][f"{compared} - {base}"] = difference_cell(found)
            if found.least is not None:
                rows[name]["could show"] = Cell(found.least)
    for name in baseline_names(tested):
        own = {measure: baseline_score(tested, name, measure) for measure in measures}
        if any(score is not None for score in own.values()):
            rows[NAMES.get(name, name)] = {measure: Cell(score) for measure, score in own.items()}
    return _frame(rows)


def difference_table(tested: Sequence[Tested], base: str, measures: Sequence[str]) -> pd.DataFrame:
    """Return the differences of all settings from one of them, a column per measure; arguments as of `score_table`."""
    settings = by_setting(tested)
    rows = {
        name: {measure: difference_cell(difference(own, settings[base], measure)) for measure in measures}
        for name, own in settings.items()
        if name != base
    }
    return _frame(rows)


def difference_cell(found: Difference) -> Cell:
    """Return a difference with its interval, or why it has none."""
    if np.isnan(found.value):
        return Cell(None)
    mark = (ALONE if found.note == ONE_SEED else f"({found.note})") if found.note else ""
    return Cell(found.value, found.low, found.high, mark, signed=True)


def legend(frame: pd.DataFrame) -> str:
    """Return what the marks in a table mean."""
    marks = {cell.mark for _, column in frame.items() for cell in column if isinstance(cell, Cell)}
    return "; ".join([*([MEANING] if BELOW in marks else []), *([f"{ALONE} {ONE_SEED}"] if ALONE in marks else [])])


# ---- The tables of a report -----------------------------------------------------------------------------------------


def by_questions(tested: Iterable[Tested]) -> list[list[Tested]]:
    """Return the tests of the same questions and scorer together."""
    sets: dict[object, list[Tested]] = {}
    for each in tested:
        sets.setdefault((each.benchmark, each.scorer, each.asked), []).append(each)
    return list(sets.values())


def report_tables(tested: Sequence[Tested], baseline: str | None = None) -> list[tuple[str, pd.DataFrame]]:
    """Return titles and tables of tests of the same questions: scores, differences, small parameters, options.

    Args:
        tested: The tests.
        baseline: The row, or a run in it, that differences are from; None, or one of other tests, is the first row.
    """
    settings, measures = by_setting(tested), table_measures(tested)
    base = next((name for name, own in settings.items() if baseline in names_of(name, own)), next(iter(settings)))
    first = tested[0]
    asked = f"{len(first.questions)} questions about {first.questions['scene'].nunique()} scenes"
    title = f"{first.benchmark}, scorer {first.scorer}, {asked}: scores in %, mean (least to greatest) over seeds"
    tables = [(title, score_table(tested, base, measures))]
    if len(settings) > 1 and len(measures) > 1:
        title = f"Differences from {base} in points, with 95 % intervals over seeds and scenes"
        tables.append((title, difference_table(tested, base, measures)))
    small = parameter_table(settings.values())
    if not small.empty:
        tables.append(("Small parameters: mean (least to greatest) over their numbers, layers and seeds", small))
    labeled = ((name, each) for name, own in settings.items() for test in own for each in test.responses)
    if not (responses := response_table(labeled)).empty:
        tables.append(("Responses to interventions, with 95 % intervals", responses))
    options = option_table({name: own[0].options for name, own in settings.items()})
    if not options.empty:
        tables.append(("Options that differ", options))
    return [("; ".join(filter(None, (title, legend(table)))), table) for title, table in tables]


def parameter_table(settings: Iterable[Sequence[Tested]]) -> pd.DataFrame:
    """Return where small parameters, such as gates, began and ended in training: a row per setting and parameter.

    Parameters of several layers have one row. The largest change is that of a single number.

    Args:
        settings: The tests of each row of the results, one per seed. Further tests of the same weights add nothing.
    """
    values: dict[tuple[str, str], list[Sequence[Sequence[float]]]] = {}
    shown = set[str]()
    for tests in settings:
        if tests[0].label not in shown:
            shown.add(tests[0].label)
            for name, both in (pair for each in tests for pair in each.small_parameters.items()):
                values.setdefault((tests[0].label, LAYER.sub(".*", name)), []).append(both)
    rows = []
    for (label, name), pairs in values.items():
        began, ended = (np.concatenate([pair[end] for pair in pairs]) for end in (0, 1))
        change = ended - began
        largest = f"{change[np.abs(change).argmax()]:+.2g}"
        rows.append((label, name, _spread(began), _spread(ended), largest))
    columns = ["setting", "parameter", "began", "ended", "largest change"]
    return pd.DataFrame(rows, columns=columns, dtype=object).set_index("setting")


def _spread(values: Float64[np.ndarray, " N"]) -> str:
    """Return the mean, and the least and the greatest if they differ."""
    mean, low, high = (f"{value:.4g}" for value in (values.mean(), values.min(), values.max()))
    return mean if low == high else f"{mean} ({low} to {high})"


def names_of(row: str, tests: Iterable[Tested]) -> set[str]:
    """Return the names by which a user may call a row: its own, its label, and its runs' folders."""
    folders = [each.folder for each in tests if each.folder]
    return {row, *(each.label for each in tests), *(text for path in folders for text in (str(path), path.name))}


def _frame(rows: Mapping[str, Mapping[str, Any]]) -> pd.DataFrame:
    columns = list(dict.fromkeys(name for row in rows.values() for name in row))
    cells = [[row.get(name, "") for name in columns] for row in rows.values()]
    return pd.DataFrame(cells, index=pd.Index(list(rows), name="setting"), columns=columns, dtype=object)


# ---- Formats --------------------------------------------------------------------------------------------------------

STYLES = {"text": "simple", "markdown": "pipe", "latex": "latex_booktabs"}  # tabulate's names
LAYOUTS = {
    "text": "{title}\n\n{table}\n",
    "markdown": "**{title}**\n\n{table}\n",
    "latex": "% needs \\usepackage{{booktabs}}\n"
    "\\begin{{table}}\n\\centering\n\\caption{{{title}}}\n{table}\n\\end{{table}}\n",
}


def write(frame: pd.DataFrame, format: Format, title: str = "") -> str:
    """Return a table as text, with its index as the first column.

    Args:
        frame: A table; other values than cells are shown by `str`.
        format: text, markdown, latex (needs booktabs), csv or html. CSV holds plain numbers in 0..1: the range or
            interval of a column has columns of its own.
        title: The caption; CSV has none.
    """
    if format == "csv":
        return str(_numbers(frame).map(_inert).rename(index=_inert, columns=_inert).to_csv(lineterminator="\n"))
    right = [any(isinstance(cell, Cell | int | float) for cell in column) for _, column in frame.items()]
    title, texts = _one_line(title), frame.map(_one_line).set_axis(frame.columns.map(_one_line), axis=1)
    texts.insert(0, "", frame.index.map(_one_line))
    if format == "html":
        caption = f"<caption>{escape(title)}</caption>" if title else ""
        with pd.option_context("display.max_colwidth", None):
            return f"{texts.to_html(index=False, border=0).replace('>', f'>{caption}', 1)}\n"
    if format == "markdown":
        texts, title = texts.map(_markdown).set_axis(texts.columns.map(_markdown), axis=1), _markdown(title)
    sides = ["left", *("right" if each else "left" for each in right)]
    table = texts.to_markdown(index=False, tablefmt=STYLES[format], colalign=sides, disable_numparse=True)
    if format == "latex":
        table = re.sub(r"^ *(?=[\[*])", "{}", table, flags=re.MULTILINE)  # else an argument of the \\ or \midrule above
        title = title.translate(str.maketrans(LATEX_ESCAPE_RULES))
    return LAYOUTS[format].format(title=title, table=table) if title else f"{table}\n"


def _numbers(frame: pd.DataFrame) -> pd.DataFrame:
    """Return a table with plain numbers in place of cells."""
    columns: dict[str, list[Any]] = {}
    for name, column in frame.items():
        if not any(isinstance(cell, Cell) for cell in column):
            columns[str(name)] = list(column)
            continue
        for suffix, part in (("", "value"), (" low", "low"), (" high", "high")):
            values = [getattr(cell, part, None) for cell in column]
            if part == "value" or any(value is not None for value in values):
                columns[f"{name}{suffix}"] = values
    return pd.DataFrame(columns, index=frame.index)


def _one_line(cell: Any) -> str:
    return "" if cell is None else printable(" ".join(str(cell).split()))


def _inert(cell: Any) -> Any:
    """Return a cell of CSV, where a text that a spreadsheet would take for a formula begins with an apostrophe."""
    if not isinstance(cell, str):
        return cell
    text = printable(cell)
    return f"'{text}" if text.startswith(("=", "+", "-", "@", "\t")) and to_float(text) is None else text


def _markdown(text: str) -> str:
    return re.sub(r"([\\`*_\[\]<>|])", r"\\\1", text)
