"""A report as one HTML file without scripts, which needs no network, whatever the answers contain."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Sequence
from html import escape
from io import BytesIO

import pandas as pd

from commands.reports.plot import draw
from commands.reports.scores import MEANS, Tested, option_table, scores_of
from commands.reports.tables import baseline_names, baseline_score, by_setting, table_measures, write
from zoo.errors import printable

STYLE = """
body { font: 15px/1.4 system-ui, sans-serif; margin: 2em auto; max-width: 1200px; padding: 0 1em; }
div { overflow-x: auto; }
table { border-collapse: collapse; margin: 1em 0; }
caption { font-weight: bold; padding: .4em 0; text-align: left; }
th, td { border-bottom: 1px solid #ddd; padding: .25em .7em; text-align: left; vertical-align: top; }
tr:hover { background: #f4f4f4; }
summary { cursor: pointer; }
img { max-width: 100%; }
"""
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"  # nothing in the page runs or is fetched


def page(
    sets: Sequence[Sequence[Tested]], tables: Sequence[tuple[str, pd.DataFrame]], notes: Sequence[str], title: str
) -> str:
    """Return the text of the page.

    Args:
        sets: The tests in sets of the same questions. Each set has a plot and the tables of its questions.
        tables: Titles and tables.
        notes: Lines above the tables.
        title: The heading.
    """
    parts = [f"<h1>{escape(title)}</h1>"]
    parts += [f"<ul>{''.join(f'<li>{escape(note)}</li>' for note in notes)}</ul>"] if notes else []
    parts += [f"<div>{write(table, 'html', caption)}</div>" for caption, table in tables]
    for tested in sets:
        options = option_table({name: own[0].options for name, own in by_setting(tested).items()}, differing=False)
        parts += [_plot(tested), *([] if options.empty else [_details("All options", options)])]
        parts += ["<h2>Questions</h2>", *_questions([each for own in by_setting(tested).values() for each in own])]
    head = f'<meta charset="utf-8"><meta http-equiv="Content-Security-Policy" content="{POLICY}">'
    head += f"<title>{escape(title)}</title><style>{STYLE}</style>"
    body = "\n".join(parts)
    return f'<!doctype html>\n<html lang="en"><head>{head}</head>\n<body>\n{body}\n</body></html>\n'


def _plot(tested: Sequence[Tested]) -> str:
    """Return the scores by question type and their mean as a picture: a panel per measure, a row per setting."""
    settings = by_setting(tested)
    panels: dict[str, dict[str, dict[str, list[float]]]] = {}
    blind: dict[str, dict[str, float]] = {}
    for measure in sorted(table_measures(tested), key=lambda each: each not in MEANS):  # the means first
        panels[measure] = {name: {measure: scores_of(own, measure)} for name, own in settings.items()}
        for name in baseline_names(tested):
            if (score := baseline_score(tested, name, measure)) is not None:
                blind.setdefault(name, {})[measure] = score
    file = BytesIO()
    draw(panels, blind, "score", file, families={name: name for name in settings})
    return f'<img alt="scores by measure" src="data:image/png;base64,{b64encode(file.getvalue()).decode()}">'


def _questions(tested: Sequence[Tested]) -> list[str]:
    """Return the questions of each type with their answers, a table that opens by a click."""
    found = []
    first = tested[0].questions
    for kind in dict.fromkeys(first["question_type"]):
        own = first[first["question_type"] == kind]
        shown = [name for name in ("scene", "question", "ground_truth", "truth") if name in own]
        table = own[shown].rename(columns={"ground_truth": "truth"})
        for each in tested:
            seed = "" if each.seed is None else f", seed {each.seed}"
            name = ", ".join(filter(None, (each.label, each.test))) + seed
            heading = name if name not in table else printable(f"{name} ({each.folder})")
            table[heading] = _answers(each.questions.reindex(own.index))
        found.append(_details(f"{kind} ({len(own)})", table.rename_axis("id")))
    return found


def _details(summary: str, table: pd.DataFrame) -> str:
    return f"<details><summary>{escape(summary)}</summary><div>{write(table, 'html')}</div></details>"


def _answers(questions: pd.DataFrame) -> list[str]:
    """Return each prediction with its score in percent, or the error of its scene."""
    texts = []
    for row in questions.to_dict("records"):
        said = f"failed: {row['error']}" if row.get("error") else str(row.get("prediction", ""))
        texts.append(f"{said} ({100 * row['score']:.1f})".strip())
    return texts
