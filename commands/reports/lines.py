"""The whole report as text, Markdown or LaTeX."""

from __future__ import annotations

from collections.abc import Sequence

from commands.reports import formats
from commands.reports.compare import Comparisons
from commands.reports.runs import Run
from commands.reports.tables import first_answered, tables

WRITERS = {"text": formats.text, "markdown": formats.markdown, "latex": formats.latex}
COMMENTS = {"text": "{}\n", "markdown": "- {}\n", "latex": "% {}\n"}


def in_lines(runs: Sequence[Run], comparisons: Comparisons, notes: Sequence[str], format: str) -> str:
    """Returns the tables, with the notes and the pairs that were not compared below them."""
    parts = [WRITERS[format](table) for table in tables(runs, comparisons)]
    if format == "latex":
        parts.insert(0, "% needs \\usepackage{booktabs}\n")
    base = first_answered(runs)
    refused = [why for (first, second), why in comparisons.refused.items() if first == base and runs[second].answers]
    said = [*notes, *(f"not compared: {why}" for why in refused)]
    return "\n".join([*parts, "".join(COMMENTS[format].format(line) for line in said)] if said else parts)
