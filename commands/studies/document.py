"""The document of a study: tables, plot and comparisons in Markdown, some of them embedded in other documents."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from callbacks.baselines import BELOW, MEANING, NAMES
from commands.studies.embedding import embed
from commands.studies.plot import Rows, draw
from commands.studies.scores import OUTDATED, Scores
from commands.studies.sections import Cell, change, pairs, section, table, titled
from commands.studies.study_file import OWN, Study, words
from zoo.files.atomic_io import write_whole

UNLEARNED = "unlearned"  # in the name of a null model's error


def write_documents(scores: Scores) -> list[Path]:
    """Write the study's document and plot, and its sections in other documents; return the files.

    Raises:
        InputError: A file can't be written.
    """
    study = scores.study
    texts = {Path(name): Path(name).read_text(encoding="utf-8") for name in study.documents}
    embedded = {path: embed(text, scores, footnotes) for path, text in texts.items()}
    plot = study.document.with_suffix(".png")
    draw(_panels(scores), scores.baselines, study.score, plot)
    files = {study.document: document(scores, plot.name), **embedded}
    for path, text in files.items():
        write_whole(path, text)
    return [*files, plot]


def _panels(scores: Scores) -> Mapping[str, Rows]:
    """Return the plotted rows: of each comparison, before them the settings and tests that no comparison has."""
    study = scores.study
    panels: dict[str, Rows] = {}
    compared = set()
    for each in study.compare:
        cells = dict.fromkeys(cell for pair in pairs(each, scores) for cell in reversed(pair))
        panels[each.title] = {_row_name(study, c.setting, c.test): {c.column: scores.of(*c)} for c in cells}
        compared |= {(cell.setting, cell.test) for cell in cells}
    others = {
        _row_name(study, name, test): {column: scores.of(name, column, test) for column in study.columns}
        for name, setting in study.settings.items()
        for test in (OWN, *setting.tests)
        if (name, test) not in compared
    }
    return {"Other settings and tests" if compared else study.title: others, **panels}


def _row_name(study: Study, setting: str, test: str) -> str:
    return ", ".join(filter(None, [study.label_of(setting), test]))


def document(scores: Scores, plot: str) -> str:
    """Return the text of a study's document."""
    study = scores.study
    parts = [f"# {study.title}", study.text.strip(), _summary(study, scores), score_table(scores)]
    lines = ", and lines at the blind baselines" if scores.baselines else ""
    parts.append(f"![the scores as dots, with the range over the seeds{lines}]({plot})")
    if further := test_table(scores):
        parts += ["## Further tests of the trained models", further]
    for each in study.compare:
        parts += [f"## {each.title}", section(each, scores)]
    if errors := error_table(scores):
        parts += ["## Errors of what the objectives predict", errors]
    parts.insert(4, footnotes("".join(parts), scores))
    return "\n\n".join(filter(None, parts)) + "\n"


def _summary(study: Study, scores: Scores) -> str:
    runs = study.runs(study.settings, study.columns, study.seeds)
    found = [result for run in runs if (result := scores.results.find(run, OWN))]
    seconds = [result.fit_s for result in found if result.fit_s is not None]
    took = f" A training took {statistics.median(seconds):.0f} s (median)." if seconds else ""
    common = [*(f"--config={name}" for name in study.configs), *words(study.options)]
    options = ["All trainings have the options", "    " + " ".join(common)] if common else []
    if study.test:
        options += ["All tests have the options", "    " + " ".join(words(study.test))]
    seeds = ", ".join(map(str, study.seeds))
    spread = "the mean over the seeds, with the least and the greatest" if len(study.seeds) > 1 else "of one seed"
    cells = f"A cell is {spread} ({seeds}); the score is {study.score} unless the row says otherwise."
    if study.compare:
        cells += (
            " A difference is over the seeds that both have. Its interval resamples seeds and scenes, or questions. "
            "One that holds 0 shows no difference: `could show` is the smallest one that four of five repetitions of "
            "the study would show, and none where scores can't differ by as much."
        )
    command = f"This file is made by `{_command(study)}`: {len(found)} of {len(runs)} trainings.{took}"
    counts = Counter(result.version for result in found if result.version).most_common()
    versions = ", ".join(f"{version} ({count} training{'s' * (count > 1)})" for version, count in counts)
    made_by = [f"The code that trained: {versions}."] if counts else []
    return "\n\n".join([command, *made_by, *options, cells])


def _command(study: Study) -> str:
    return f"python main.py study {study.path}"


def score_table(scores: Scores) -> str:
    """Return the table of the settings, with the blind baselines below."""
    study, rows, missing = scores.study, list[list[str]](), list[str]()
    for name in study.settings:
        cells = [scores.cell(name, column) for column in study.columns]
        if any(cells):
            rows.append([study.label_of(name), *cells])
        else:
            missing.append(name)
    for name, own in scores.baselines.items():
        rows.append([NAMES[name], *(f"{own[each]:.3f}" if each in own else "" for each in study.columns)])
    shown = table(["setting", *(titled(column, scores) for column in study.columns)], rows)
    return f"{shown}\n\nNot measured yet: {'; '.join(missing)}." if missing else shown


def test_table(scores: Scores) -> str:
    """Return the table of further tests: of each the score, and its change against the own test."""
    study, columns, rows = scores.study, list(scores.study.columns), []
    for name, setting in study.settings.items():
        for test in setting.tests:
            cells = []
            for column in columns:
                tested, own = Cell(name, column, test), Cell(name, column)
                cells += [scores.cell(*tested), change(tested, own, scores)]
            if any(cells):
                measure = study.tests[test].score
                rows.append([study.label_of(name), f"{test} ({measure})" if measure else test, *cells])
    headings = [text for column in columns for text in (titled(column, scores), "change")]
    return table(["setting", "tested with", *headings], rows) if rows else ""


def error_table(scores: Scores) -> str:
    """Return the table of the errors of what objectives predict, each beside that of a null model."""
    columns, rows = scores.study.columns, list[list[str]]()
    for setting in scores.study.settings:
        found = [list(scores.found(setting, column).values()) for column in columns]
        names = dict.fromkeys(name for results in found for result in results for name in result.errors)
        for name in names:
            if f"/{UNLEARNED}/" in name:
                continue
            cells = []
            for results in found:
                for error in (name, name.replace("/", f"/{UNLEARNED}/", 1)):
                    measured = [result for result in results if error in result.errors]
                    values = [result.errors[error] for result in measured]
                    cells.append(scores.over_seeds(values, measured, ".3g"))
            rows.append([setting, name, *cells])
    headings = [text for column in columns for text in (titled(column, scores), "null model")]
    return table(["setting", "error", *headings], rows) if rows else ""


def footnotes(text: str, scores: Scores) -> str:
    """Return what the marks of a text mean."""
    notes = [f"{MEANING}."] if f" {BELOW} |" in text else []
    if scores.all_outdated or OUTDATED in text:
        which = "All of this was made" if scores.all_outdated else f"{OUTDATED} Made"
        command = _command(scores.study)
        notes.append(f"{which} by other code than the present; `{command} --redo_outdated` makes it anew.")
    return "\n\n".join(notes)
