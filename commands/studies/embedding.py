"""Scores and sections of a study in other documents, between comments.

    <!-- study: encodings / What do V and O add? -->
    <!-- end -->

embeds a section of the study's document, once it is measured, and

    PRoPE scores <!-- score: panel_questions / PRoPE / rotation -->0.992 (0.986 to 0.996)<!-- end -->
    and wrong cameras cost <!-- score: panels / PRoPE / cameras of another room minus PRoPE -->-0.49<!-- end -->

single scores: of a setting, a column, where the study has some, and a test of the trained models; `minus` subtracts the
own test of another setting. "best constant answer", "text alone" and "cameras alone" stand for settings. A number
without a range is the mean over the seeds, and keeps its number of digits.
"""

from __future__ import annotations

import re
import statistics
from collections.abc import Callable, Iterator

from callbacks.baselines import NAMES
from commands.studies.names import check_names
from commands.studies.scores import OUTDATED, Scores
from commands.studies.sections import Cell, is_measured, section
from commands.studies.study_file import OWN, Study
from zoo.errors import InputError

END = r"(?P<end><!-- end -->)"
SECTIONS = re.compile(rf"(?P<start><!-- study: (?P<study>[^/]+?) / (?P<title>.*?) -->\n)(?P<text>.*?){END}", re.DOTALL)
SCORES = re.compile(rf"(?P<start><!-- score: (?P<study>[^/]+?) / (?P<cell>.*?) -->)(?P<text>.*?){END}")
MEAN = re.compile(r"(?P<sign>[+-]?)\d+\.(?P<digits>\d+)")
DIGITS = 3
BLIND = {shown: name for name, shown in NAMES.items()}  # stand for settings


def embed(text: str, scores: Scores, footnotes: Callable[[str, Scores], str]) -> str:
    """Return a document with the measured scores and sections of a study; what is not measured keeps its text.

    Args:
        text: The document.
        scores: Those of the study.
        footnotes: Tell what the marks of a section mean.
    """
    study, titles = scores.study, {each.title: each for each in scores.study.compare}

    def new_section(found: re.Match[str]) -> str:
        each = titles.get(found["title"]) if found["study"] == study.name else None
        if each is None or not is_measured(each, scores):
            return found[0]
        shown = section(each, scores)
        note = f"\n{notes}\n" if (notes := footnotes(shown, scores)) else ""
        return f"{found['start']}\n{shown}\n{note}\n{found['end']}"

    def new_score(found: re.Match[str]) -> str:
        if found["study"] != study.name:
            return found[0]
        return f"{found['start']}{_shown(found['cell'], found['text'], scores) or found['text']}{found['end']}"

    return SCORES.sub(new_score, SECTIONS.sub(new_section, text))


def check_references(text: str, study: Study) -> None:
    """Check what a document refers to.

    Raises:
        InputError: The study has no such section, setting, column or test.
    """
    titles = [each.title for each in study.compare]
    for found in SECTIONS.finditer(text):
        if found["study"] == study.name:
            check_names([found["title"]], titles, "section")
    for found in SCORES.finditer(text):
        if found["study"] == study.name:
            list(_cells(found["cell"], study))


def _shown(reference: str, former: str, scores: Scores) -> str:
    """Return a score in the form of the former one; empty if it isn't measured."""
    cells = list(_cells(reference, scores.study))
    means = [mean for cell in cells if (mean := _mean(cell, scores)) is not None]
    if len(means) < len(cells):
        return ""
    form = MEAN.fullmatch(former)
    if form is None and len(cells) == 1 and cells[0].setting not in BLIND:
        return scores.cell(*cells[0]).replace(OUTDATED, "")  # the study's document has the marks
    first, *others = means
    sign, digits = (form["sign"], len(form["digits"])) if form else ("", DIGITS)
    return f"{first - sum(others):{'+' if sign else ''}.{digits}f}"


def _mean(cell: Cell, scores: Scores) -> float | None:
    if cell.setting in BLIND:
        return scores.baselines.get(BLIND[cell.setting], {}).get(cell.column)
    return statistics.mean(scores.of(*cell)) if scores.of(*cell) else None


def _cells(reference: str, study: Study) -> Iterator[Cell]:
    """Yield the cell that a reference names, and the one that is subtracted.

    Raises:
        InputError: The study has no such setting, column or test.
    """
    names, _, other = reference.partition(" minus ")
    setting, *rest = names.split(" / ")
    column = rest.pop(0) if study.columns.keys() != {""} and rest else ""
    test = rest.pop(0) if rest else OWN
    if rest:
        raise InputError(f"score: {reference}: expected setting / column / test")
    check_names([column], study.columns, "column")
    check_names([test] if test else [], study.tests, "test")
    for name, of in ((setting, test), (other, OWN)):
        if name:
            check_names([] if name in BLIND else [name], study.settings, "setting")
            yield Cell(name, column, of)
