"""The document of a study: its tables and comparisons in Markdown, and its plot."""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Container, Iterator, Mapping
from functools import cached_property
from itertools import product
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from commands.reports.plot import draw, draw_curves
from commands.reports.scores import Tested
from commands.reports.statistics import FEWEST, ONE_SEED, Difference, difference, margin, shown, verdicts
from commands.responses.results import response_table
from commands.studies.results import UNLEARNED, Result, Results, unpack_responses
from commands.studies.study_file import OWN, Comparison, Study, as_words
from datamodules.sources.base import ORACLE
from evaluation.baselines import BELOW, MEANING, NAMES, blind_only, is_below
from evaluation.table import markdown_cell
from zoo.files.atomic_io import write_whole
from zoo.files.ownership import refuse_existing

ALONE = "*"  # marks an interval of one seed
START = "model.initial_weights"
MAX_FAMILIES = 7  # rows of more families than colors are not colored
MAKES = "makes this file"  # in a sentence by which a former document is known
Rows = dict[str, dict[str, list[float]]]  # a plot's scores by row and column, one per seed


class Cell(NamedTuple):
    """A test of a setting in a column, over all seeds."""

    setting: str
    column: str
    test: str = OWN


class Document:
    """The tables of a study.

    Args:
        study: The plan.
        results: What is measured.
    """

    def __init__(self, study: Study, results: Results) -> None:
        self.study, self.results = study, results
        self._found = {(run.setting, run.column, run.seed): results.find(run) for run in study.runs()}
        self._tested: dict[Cell, list[Tested]] = {}
        self._compared: dict[tuple[Cell, Cell | None], Difference] = {}

    # ---- Scores --------------------------------------------------------------------------------------------------

    def found(self, cell: Cell) -> dict[int, Result]:
        """Return the results of a cell by seed."""
        every = {seed: self._found.get((cell.setting, cell.column, seed), {}) for seed in self.study.seeds}
        return {seed: tests[cell.test] for seed, tests in every.items() if cell.test in tests}

    def measure(self, cell: Cell) -> str:
        """Return the measure of a cell's row."""
        return self.study.score_of(cell.setting, cell.test)

    def scores(self, cell: Cell) -> list[float]:
        """Return the scores of a cell, one per seed that is measured."""
        kind = self.measure(cell)
        return [result.scores[kind] for result in self.found(cell).values() if kind in result.scores]

    def blind(self, cell: Cell) -> dict[str, float]:
        """Return the scores of the blind baselines of a cell's test, in the measure of its row."""
        result = next(iter(self.found(cell).values()), None)
        kind, baselines = self.measure(cell), result.baselines if result is not None else {}
        named = [*NAMES, *(name for name in baselines if name not in NAMES)]
        return {name: baselines[name][kind] for name in named if kind in baselines.get(name, {})}

    @cached_property
    def baselines(self) -> dict[str, dict[str, float]]:
        """The scores of the blind baselines in each column, by name, in the study's measure."""
        names = [name for name in self.study.settings if self.study.score_of(name) == self.study.score]
        found: dict[str, dict[str, float]] = {}
        for column in self.study.columns:
            own = (self.blind(Cell(name, column)) for name in names)
            for baseline, score in next(filter(None, own), {}).items():
                found.setdefault(baseline, {})[column] = score
        return found

    def text(self, cell: Cell) -> str:
        """Return the mean score of a cell with its range, marked if it is below the best blind baseline."""
        values = self.scores(cell)
        if self.is_bimodal(cell):
            begun = self._begun(cell)
            return f"{', '.join(f'{value:.3f}' for value in values)} ({sum(begun)} of {len(begun)} begin)"
        below = bool(values) and is_below(statistics.mean(values), self.blind(cell))
        return f"{self._over_seeds(values)} {BELOW}" if below else self._over_seeds(values)

    def is_bimodal(self, cell: Cell) -> bool:
        """Return whether some trainings of a cell have begun to learn by their own test, and others have not."""
        return len({*self._begun(cell)}) > 1

    def _begun(self, cell: Cell) -> list[bool]:
        """Return which trainings of a cell have begun to learn by their own test. Empty without a threshold."""
        threshold, own = self.study.begins, self.scores(cell._replace(test=OWN))
        return [] if threshold is None else [score >= threshold for score in own]

    def _over_seeds(self, values: list[float], form: str = ".3f") -> str:
        """Return a mean with the least and the greatest value, and the number of seeds if some are missing."""
        if not values:
            return ""
        notes = [f"{min(values):{form}} to {max(values):{form}}"] if len(values) > 1 else []
        notes += [f"{len(values)} of {len(self.study.seeds)} seeds"] if len(values) < len(self.study.seeds) else []
        return f"{statistics.mean(values):{form}}" + (f" ({', '.join(notes)})" if notes else "")

    # ---- Tables --------------------------------------------------------------------------------------------------

    def score_table(self) -> pd.DataFrame:
        """Return the table of the settings that are measured, with the blind baselines below."""
        columns = self.study.columns
        rows = {name: [self.text(Cell(name, column)) for column in columns] for name in self.study.settings}
        table = [[self.study.label_of(name), *cells] for name, cells in rows.items() if any(cells)]
        for name, own in self.baselines.items():
            table.append([NAMES.get(name, name), *(f"{own[each]:.3f}" if each in own else "" for each in columns)])
        return pd.DataFrame(table, columns=["setting", *map(self._heading, columns)])

    def response_table(self) -> pd.DataFrame:
        """Return the table of the responses of all settings, pooled over seeds. Empty if none are measured."""
        names = ((name, column) for name in self.study.settings for column in self.study.columns_of(name))
        labeled = (
            (", ".join(filter(None, (name, column))), each)
            for name, column in names
            for result in self.found(Cell(name, column)).values()
            for each in unpack_responses(result)
        )
        return response_table(labeled).reset_index()

    def hit_table(self) -> pd.DataFrame:
        """Return the table of the hits of each setting against each exact rule. Empty if there are none."""
        rows, rules = [], list[str]()
        for name in self.study.settings:
            for column in self.study.columns_of(name):
                own = [each.hits for each in self.found(Cell(name, column)).values() if each.hits]
                rules = [rule for rule in own[0] if rule.startswith(ORACLE)] if own else rules
                means = [[each[rule][0] for each in own] for rule in rules if own]
                cells = [f"{statistics.fmean(each):.2f} ({min(each):.2f} to {max(each):.2f})" for each in means]
                rows += [[", ".join(filter(None, (name, column))), *cells]] if own else []
        return pd.DataFrame(rows, columns=["setting", *(rule.removeprefix(ORACLE) for rule in rules)])

    def verdict(self) -> str:
        """Return which settings are above all blind baselines and oracles, and by how much. "" without oracles.

        The settings are one family of comparisons. The best oracle's score counts as known exactly.
        """
        judged: dict[str, Difference] = {}
        few, unbegun = list[str](), list[str]()
        for cell in (Cell(name, column) for name in self.study.settings for column in self.study.columns_of(name)):
            tests, blind = self._tests(cell), blind_only(self.blind(cell))
            if not tests or not any(name.startswith(ORACLE) for name in blind):
                continue
            label = ", ".join(filter(None, (self.study.label_of(cell.setting), cell.column)))
            if self.is_bimodal(cell):
                unbegun.append(label)
            elif len(tests) < FEWEST:
                few.append(label)
            else:
                judged[label] = self.compare(cell)
        if not judged and not few and not unbegun:
            return ""
        is_above = dict(zip(judged, shown([*judged.values()]), strict=True))
        told = {label: f"{label}, {' ('.join(_difference_texts(own)[:2])})" for label, own in judged.items()}
        positive = [label for label, own in judged.items() if own.value > 0]
        above, oracles = [told[each] for each in positive if is_above[each]], "all blind baselines and oracles"
        groups = {
            f"Above {oracles}": above or (["none"] if judged else []),
            "Above them in the mean, which is not shown": [told[each] for each in positive if not is_above[each]],
            f"Not judged against {oracles}, with fewer than {FEWEST} seeds": few,
            f"Not judged against {oracles}, because not all seeds begin": unbegun,
        }
        return " ".join(f"{what}: {'; '.join(labels)}." for what, labels in groups.items() if labels)

    def test_table(self, without: Container[tuple[str, str]] = ()) -> pd.DataFrame:
        """Return the table of further tests: the score of each, and its change against the model's own test.

        Settings with a test that are in `without` are left out.
        """
        rows = []
        for name, setting in self.study.settings.items():
            for test in (each for each in setting.tests if (name, each) not in without):
                texts = []
                for column in self.study.columns:
                    cell = Cell(name, column, test)
                    texts += [self.text(cell), self._change(cell)]
                if any(texts):
                    score = self.study.tests[test].score
                    rows.append([self.study.label_of(name), f"{test} ({score})" if score else test, *texts])
        headings = [text for column in self.study.columns for text in (self._heading(column), "change")]
        return pd.DataFrame(rows, columns=["setting", "tested with", *headings])

    def error_table(self) -> pd.DataFrame:
        """Return the table of the errors of what objectives predict, each beside a null model's."""
        rows = []
        for setting in self.study.settings:
            found = [list(self.found(Cell(setting, column)).values()) for column in self.study.columns]
            names = dict.fromkeys(name for results in found for result in results for name in result.errors)
            for name in (name for name in names if f"/{UNLEARNED}/" not in name):
                both = (name, name.replace("/", f"/{UNLEARNED}/", 1))
                cells = []
                for own, error in product(found, both):
                    values = [each.errors[error] for each in own if error in each.errors]
                    cells.append(self._over_seeds(values, ".3g"))
                rows.append([setting, name, *cells])
        headings = [text for column in self.study.columns for text in (self._heading(column), "null model")]
        return pd.DataFrame(rows, columns=["setting", "error", *headings])

    def begin_table(self) -> pd.DataFrame:
        """Return the table of the steps after which each training begins to learn. Empty without curves."""
        threshold, rows = self.study.begins, []
        if threshold is not None:
            for name, curves in self.curves.items():
                firsts = [next((step for step, score in curve if score >= threshold), math.inf) for curve in curves]
                begun = [f"{step:.0f}" for step in sorted(firsts) if step < math.inf]
                ends = [curve[-1][0] for curve, first in zip(curves, firsts, strict=True) if first == math.inf]
                rows.append([name, ", ".join([*begun, *(f"> {end:.0f}" for end in sorted(ends))])])
        return pd.DataFrame(rows, columns=["setting", "begins after steps"])

    def comparison(self, each: Comparison) -> pd.DataFrame:
        """Return the table of a comparison, without rows that have no score."""
        columns, rows = self._columns(each), []
        pairs = [pair for pair in self.pairs(each) if any(self.text(pair[0]._replace(column=name)) for name in columns)]
        found = [self.compare(*pair) for pair in pairs]
        said = ["" for _ in pairs] if each.interest is None else verdicts(found, each.interest)
        for (cell, base), own, verdict in zip(pairs, found, said, strict=True):
            texts = [self.text(cell._replace(column=column)) for column in columns]
            named = [self.study.label_of(cell.setting), *([cell.test] if each.tests else [])]
            value, *rest = _difference_texts(own)
            value += self._seeds_of(cell, base) if value else ""
            rows.append([*named, *texts, value, *rest, *([] if each.interest is None else [verdict])])
        against = f"minus *{each.baseline}*" if each.baseline else "minus the own test"
        headings = [*(["tested with"] if each.tests else []), *map(self._heading, columns)]
        starts = {self._start(cell) for pair in pairs for cell in pair} - {None}
        interval = "95 % interval" + (", for this start" if starts else "")
        compared = [f"{self._heading(columns[0])}, {against}", interval, "least effect"]
        compared += [] if each.interest is None else [f"meaning, for effects of {each.interest:g}"]
        return pd.DataFrame(rows, columns=["setting", *headings, *compared])

    def pairs(self, each: Comparison) -> Iterator[tuple[Cell, Cell]]:
        """Yield the cells of a comparison, each with the cell that it is compared with."""
        column = self._columns(each)[0]
        if each.baseline is not None:
            for test in each.tests or [OWN]:
                for name in dict.fromkeys([each.baseline, *each.settings]):
                    yield Cell(name, column, test), Cell(each.baseline, column, test)
        else:
            for name in each.settings:
                for test in each.tests:
                    if test in self.study.settings[name].tests:
                        yield Cell(name, column, test), Cell(name, column)

    def _columns(self, each: Comparison) -> list[str]:
        """Return the columns that a comparison shows; it compares in the first."""
        columns = [each.column] if each.column else list(self.study.columns)
        return columns if each.baseline is not None else columns[:1]

    def _heading(self, column: str) -> str:
        return f"`{column}`" if column else self.study.score

    def compare(self, cell: Cell, base: Cell | None = None) -> Difference:
        """Return the difference from another cell, or from the best blind baseline or oracle, with its interval.

        Between trainings of which only some have begun, there is none.
        """
        if (cell, base) not in self._compared:  # several tables may show it
            self._compared[cell, base] = self._compare(cell, base)
        return self._compared[cell, base]

    def _compare(self, cell: Cell, base: Cell | None) -> Difference:
        if base is None:
            return margin(self._tests(cell), max(blind_only(self.blind(cell)).values()), self.measure(cell))
        ours, theirs = self.found(cell), self.found(base)
        if cell == base or not ours or not theirs:
            return Difference(math.nan)
        asked = self.results.questions
        both = [(asked[ours[seed].questions], asked[theirs[seed].questions]) for seed in ours.keys() & theirs.keys()]
        if cell[:2] == base[:2] and not all(one.is_same(other) for one, other in both):
            return Difference(math.nan)  # a test with other questions
        if self.is_bimodal(cell) or self.is_bimodal(base):
            return Difference(math.nan, note="not all trainings begin")
        return difference(self._tests(cell), self._tests(base), self.measure(cell))

    def _start(self, cell: Cell) -> str | None:
        """Return the trained weights that all seeds of a cell start from; None for random and for released ones."""
        start = self.study.run(cell.setting, cell.column, self.study.seeds[0]).resolved.get(START)
        return None if start is None else str(start)

    def _tests(self, cell: Cell) -> list[Tested]:
        """Return the tests of a cell that have its measure, one per seed."""
        if cell not in self._tested:
            label, kind = ", ".join(filter(None, cell[:2])), self.measure(cell)
            found = (result for result in self.found(cell).values() if kind in result.scores)
            self._tested[cell] = [self.results.tested(result, label, cell.test) for result in found]
        return self._tested[cell]

    def _seeds_of(self, cell: Cell, base: Cell) -> str:
        """Return the seeds of a difference between two tests of the same trainings, if a side has further seeds."""
        seeds = self.found(cell).keys(), self.found(base).keys()
        if cell[:2] != base[:2] or seeds[0] == seeds[1]:
            return ""  # all seeds of both sides
        both = sorted(seeds[0] & seeds[1])
        return f" (seed{'s' if len(both) > 1 else ''} {', '.join(map(str, both))})"

    def _change(self, cell: Cell) -> str:
        """Return the change of a further test against the model's own, in the same trainings."""
        base = cell._replace(test=OWN)
        value = _difference_texts(self.compare(cell, base))[0]
        return value and value + self._seeds_of(cell, base)

    # ---- The file ------------------------------------------------------------------------------------------------

    def write(self) -> list[Path]:
        """Write the document and its plot; return the files.

        Raises:
            InputError: A file can't be written, or is not a former one of a study.
        """
        plot = self.study.document.with_suffix(".png")
        drawn = [plot, *([plot.with_name(_curves_of(plot.name))] if self.curves else [])]
        if not self.study.document.exists():
            refuse_existing(drawn)
        elif MAKES not in self.study.document.read_text(encoding="utf-8", errors="replace"):
            refuse_existing([self.study.document])
        draw(self._panels(), self.baselines, self.study.score, plot, self._families())
        if self.curves:
            draw_curves(self.curves, self.study.begins, f"{self.study.score} of validation scenes", drawn[-1])
        write_whole(self.study.document, self.markdown(plot.name))
        return [self.study.document, *drawn]

    @cached_property
    def curves(self) -> dict[str, list[list[list[int | float]]]]:
        """The learning curves of each setting in each column, one per seed."""
        cells = [Cell(name, column) for name in self.study.settings for column in self.study.columns]
        found = {cell: [each.curve for each in self.found(cell).values() if each.curve] for cell in cells}
        return {", ".join(filter(None, cell)): own for cell, own in found.items() if own}

    def markdown(self, plot: str) -> str:
        """Return the text of the document, with the name of its plot."""
        study = self.study
        measured = {setting for setting, column, _ in self._found if self.text(Cell(setting, column))}
        missing = [name for name in study.settings if name not in measured]
        lines = ", and lines at the blind baselines" if self.baselines else ""
        is_interim = any(len(self._found[run.setting, run.column, run.seed]) < len(run.tests) for run in study.runs())
        title = f"# {study.title}{' (interim)' if is_interim else ''}"
        parts = [title, study.text.strip(), self._cells(), _markdown(self.score_table())]
        parts.append(self.verdict())
        parts.append(f"Not measured yet: {'; '.join(missing)}." if missing else "")
        picture = f"![the scores as dots, with the range over the seeds{lines}]({plot})"
        parts.append(picture)
        if self.curves:
            shown = "learning curves: the score of validation scenes by step, a line per seed"
            parts.append(f"![{shown}]({_curves_of(plot)})")
        told = [cell for each in study.compare if each.baseline is None for cell, _ in self.pairs(each)]
        compared = {(cell.setting, cell.test) for cell in told} if len(study.columns) == 1 else set()
        if not (further := self.test_table(compared)).empty:  # a comparison has the same numbers and more
            parts += ["## Further tests of the trained models", _markdown(further)]
        if not (responses := self.response_table()).empty:
            parts += ["## Responses", _markdown(responses)]
        if not (hits := self.hit_table()).empty:
            parts += ["## Are answers right more often than a rule permits?", _markdown(hits)]
        if not (begun := self.begin_table()).empty:
            parts += ["## Which trainings begin to learn", _markdown(begun)]
        for each in study.compare:
            text = "Not measured yet." if (table := self.comparison(each)).empty else _markdown(table)
            parts += [f"## {each.title}", text, *([f"\\{ALONE} {ONE_SEED}."] if f" {ALONE} " in text else [])]
        if not (errors := self.error_table()).empty:
            parts += ["## Errors of what the objectives predict", _markdown(errors)]
        parts += ["## How it was made", self._made()]
        if any(f" {BELOW}" in part for part in parts[3:]):
            parts.insert(parts.index(picture), f"{MEANING}.")
        return "\n\n".join(filter(None, parts)) + "\n"

    def _cells(self) -> str:
        """Return what the cells of this study's tables are, and where it is said what all studies' tables have."""
        study = self.study
        seeds = ", ".join(map(str, study.seeds))
        spread = "the mean over the seeds, with the least and the greatest" if len(study.seeds) > 1 else "of one seed"
        parts = [f"A cell is {spread} ({seeds}). The score is {study.score} unless the row says otherwise."]
        if study.begins is not None:
            parts.append(f"A training has begun to learn at {study.begins:g}.")
        parts.append(f"{_rules_from(study.document)} says what the tables mean.")
        lines = [" ".join(parts)]
        if study.added_seeds:
            added = ", ".join(map(str, study.added_seeds))
            lines.append(
                f"Seeds that were added after a look at the results of the others: {added}. Intervals and meanings do"
                " not account for the look."
            )
        if study.compare and len(study.seeds) == 1:
            lines.append("Differences are paired by question. Their 95 % intervals are for other scenes alone.")
        starts = {self._start(Cell(run.setting, run.column)): None for run in study.runs()}
        if len(study.seeds) > 1 and (files := ", ".join(f"`{start}`" for start in starts if start)):
            which = "Some trainings" if None in starts else "All trainings"
            lines.append(
                f"{which} start from trained weights ({files}). Their intervals are for other trainings from these"
                " weights, and say nothing about other starts."
            )
        return "\n\n".join(lines)

    def _made(self) -> str:
        """Return the command, the commits and the options of the trainings and tests."""
        study, runs = self.study, self.study.runs()
        found = [tests[OWN] for tests in self._found.values() if OWN in tests]
        seconds = [result.fit_s for result in found if result.fit_s is not None]
        took = f" A training took {statistics.median(seconds):.0f} s (median)." if seconds else ""
        parts = [f"`python main.py study {study.path}` {MAKES}: {len(found)} of {len(runs)} trainings.{took}"]
        counts = Counter(f"{each.commit}{'' if each.is_clean else ' with changes'}" for each in found if each.commit)
        if counts:
            versions = ", ".join(f"{version} ({number})" for version, number in counts.most_common())
            parts.append(f"Commits of the code, with the number of trainings: {versions}.")
        if common := [*(f"--config={name}" for name in study.configs), *as_words(study.options)]:
            parts += ["All trainings have the options", "    " + " ".join(common)]
        if study.test:
            parts += ["All tests have the options", "    " + " ".join(as_words(study.test))]
        return "\n\n".join(parts)

    def _panels(self) -> Mapping[str, Rows]:
        """Return the rows of the plot: each comparison, then the settings and tests that no comparison has."""
        study, compared = self.study, set[tuple[str, str]]()
        panels: dict[str, Rows] = {}
        for each in study.compare:
            cells = dict.fromkeys(cell for pair in self.pairs(each) for cell in reversed(pair))
            panels[each.title] = {self._row(cell): {cell.column: self.scores(cell)} for cell in cells}
            compared |= {(cell.setting, cell.test) for cell in cells}
        others = [
            Cell(name, "", test)
            for name, setting in study.settings.items()
            for test in (OWN, *setting.tests)
            if (name, test) not in compared
        ]
        rows = {
            self._row(cell): {column: self.scores(cell._replace(column=column)) for column in study.columns}
            for cell in others
        }
        return {**panels, "Other settings and tests" if compared else study.title: rows}

    def _families(self) -> dict[str, str] | None:
        """Return the family of each row, by which it is colored: the first words of the setting, up to a comma."""
        tests = {name: (OWN, *setting.tests) for name, setting in self.study.settings.items()}
        names = [(Cell(name, "", test), name.partition(",")[0]) for name, own in tests.items() for test in own]
        families = {self._row(cell): family for cell, family in names}
        return families if 1 < len(set(families.values())) <= MAX_FAMILIES else None

    def _row(self, cell: Cell) -> str:
        return ", ".join(filter(None, [self.study.label_of(cell.setting), cell.test]))


def _curves_of(plot: str) -> str:
    """Return the name of the plot of learning curves beside a study's plot."""
    return f"{Path(plot).stem}_curves.png"


def _rules_from(document: Path) -> str:
    """Return the name of the page on tables, with a link where the document lies beside this project's own."""
    page = "docs/concepts/rules.md"
    is_ours = (document.parent.parent / page).is_file()
    return f"[Rules of a study](../{page}#what-the-tables-say)" if is_ours else f"`{page}`"


def _difference_texts(found: Difference) -> list[str]:
    """Return a difference, its interval or why it has none, and the least effect that the study would show."""
    value = "" if math.isnan(found.value) else f"{found.value:+.3f}"
    interval = found.note if found.low is None else f"{found.low:+.3f} to {found.high:+.3f}"
    interval += f" {ALONE}" if found.note == ONE_SEED else ""
    return [value, interval, "" if found.least is None else f"{found.least:.3f}"]


def _markdown(table: pd.DataFrame) -> str:
    texts = table.map(markdown_cell).set_axis(table.columns.map(markdown_cell), axis=1)
    return texts.to_markdown(index=False, disable_numparse=True)
