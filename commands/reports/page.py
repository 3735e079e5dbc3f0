"""A report as one HTML file, which opens from disk and needs no network, whatever the answers contain.

Its pictures of scenes lie in a folder beside it. Nothing but the page's own script runs.
"""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Sequence
from hashlib import sha256
from html import escape
from io import BytesIO

import pandas as pd

from commands.reports import questions
from commands.reports.pictures import Pictures
from commands.reports.plot import draw
from commands.reports.scores import MEANS, Tested, option_table, scores_of
from commands.reports.tables import baseline_names, baseline_score, by_setting, table_measures, write

STYLE = """
:root { color-scheme: light dark; }
body { font: 15px/1.4 system-ui, sans-serif; margin: 2em auto; max-width: 1200px; padding: 0 1em; }
div { overflow-x: auto; }
table { border-collapse: collapse; margin: 1em 0; }
caption { font-weight: bold; padding: .4em 0; text-align: left; }
th, td { border-bottom: 1px solid #8886; padding: .25em .7em; text-align: left; vertical-align: top; }
tr:hover { background: #8882; }
summary { cursor: pointer; }
img { max-width: 100%; }
"""
# nothing else in the page runs or is fetched; `file:` is the folder of a page on disk
POLICY = (
    "default-src 'none'; img-src data: file: 'self'; style-src 'unsafe-inline'; "
    f"script-src 'sha256-{b64encode(sha256(questions.SCRIPT.encode()).digest()).decode()}'"
)


def page(
    sets: Sequence[Sequence[Tested]],
    tables: Sequence[tuple[str, pd.DataFrame]],
    notes: Sequence[str],
    title: str,
    pictures: Pictures,
) -> str:
    """Return the text of the page.

    Args:
        sets: The tests in sets of the same questions. Each set has a plot and the tables of its questions.
        tables: Titles and tables.
        notes: Lines above the tables.
        title: The heading.
        pictures: Addresses of pictures of scenes and answers.
    """
    parts = [f"<h1>{escape(title)}</h1>"]
    parts += [f"<ul>{''.join(f'<li>{escape(note)}</li>' for note in notes)}</ul>"] if notes else []
    parts += [f"<div>{write(table, 'html', caption)}</div>" for caption, table in tables]
    for tested in sets:
        options = option_table({name: own[0].options for name, own in by_setting(tested).items()}, differing=False)
        parts += [_plot(tested), *([] if options.empty else [_details("All options", options)])]
        parts += [questions.question_section(tested, pictures)]
    head = f'<meta charset="utf-8"><meta http-equiv="Content-Security-Policy" content="{POLICY}">'
    head += f"<title>{escape(title)}</title><style>{STYLE}{questions.STYLE}</style>"
    body = "\n".join([*parts, f"<script>{questions.SCRIPT}</script>"])
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


def _details(summary: str, table: pd.DataFrame) -> str:
    return f"<details><summary>{escape(summary)}</summary><div>{write(table, 'html')}</div></details>"
