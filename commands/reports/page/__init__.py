"""The report as one self-contained HTML page, whatever the answers contain."""

from __future__ import annotations

import json
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

from commands.reports.bootstrap import RESAMPLES, SEED
from commands.reports.columns import AVERAGE, column_score, measures
from commands.reports.compare import Comparisons
from commands.reports.formats import html
from commands.reports.page.questions import question_data
from commands.reports.paths import CameraPaths
from commands.reports.runs import Run
from commands.reports.tables import means, scores, settings

HERE = Path(__file__).parent
SCRIPTS = ("dom.js", "sort.js", "bars.js", "compare.js", "questions.js", "detail.js")


def page(runs: Sequence[Run], comparisons: Comparisons, notes: Sequence[str], paths: CameraPaths) -> str:
    """Return the text of the page.

    Args:
        runs: at least one run.
        comparisons: of the runs.
        notes: lines above the tables.
        paths: the scenes' camera paths.
    """
    benchmark = runs[0].benchmark
    tables = "".join(f'<div class="wide">{html(table)}</div>' for table in (scores(runs), means(runs), settings(runs)))
    data = {
        "runs": [run.name for run in runs],
        "bars": {
            column: [run.metrics and column_score(benchmark, run.metrics, column) for run in runs]
            for column in (*benchmark.columns, AVERAGE)
        },
        "comparisons": _comparisons(comparisons, measures(benchmark)),
        "bootstrap": {"resamples": RESAMPLES, "seed": SEED},
        **question_data(runs),
        "paths": paths.datasets,
        "dataset": paths.of_run,
    }
    parts = {
        "style": (HERE / "report.css").read_text(encoding="utf-8"),
        "notes": "".join(f"<li>{escape(note)}</li>" for note in notes),
        "tables": tables,
        "data": _inert(json.dumps(data, separators=(",", ":"), allow_nan=False)),
        "script": "\n".join((HERE / name).read_text(encoding="utf-8") for name in SCRIPTS),
    }
    text = (HERE / "report.html").read_text(encoding="utf-8")
    pieces = text.split("%%")  # text, part, text, ...: parts are not searched for more
    return "".join(parts[piece] if place % 2 else piece for place, piece in enumerate(pieces))


def _comparisons(comparisons: Comparisons, names: tuple[str, ...]) -> dict[str, Any]:
    """Return {"0 1": [[measure, difference, [low, high], [low, high] or null], ...] or the reason for none}."""
    found: dict[str, Any] = {}
    for (i, j), each in comparisons.pairs.items():
        found[f"{i} {j}"] = [
            [names.index(measure), _short(d.value), _ends(d.by_question), d.by_scene and _ends(d.by_scene)]
            for measure, d in each.items()
        ]
    return {"measures": names, "pairs": found | {f"{i} {j}": why for (i, j), why in comparisons.refused.items()}}


def _ends(interval: tuple[float, float]) -> list[float]:
    return [_short(end) for end in interval]


def _short(number: float) -> float:
    return round(number, 6)


def _inert(text: str) -> str:
    """Escape JSON for HTML: `<` occurs in its strings only."""
    return text.replace("<", "\\u003c")
