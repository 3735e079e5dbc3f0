"""Formats of a report and its tables: plain text, Markdown, LaTeX, and the tables of the HTML page."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from html import escape

from tabulate import LATEX_ESCAPE_RULES, tabulate

from commands.reports.compare import Comparisons
from commands.reports.loaded_runs import Run
from commands.reports.table import Table
from commands.reports.tables import first_answered, tables

STYLES = {"text": "simple", "markdown": "pipe", "latex": "latex_booktabs", "html": "html"}  # tabulate's names
LAYOUTS = {
    "text": "{title}\n\n{table}\n",
    "markdown": "**{title}**\n\n{table}\n",
    "latex": "\\begin{{table}}\n\\centering\n\\caption{{{title}}}\n{table}\n\\end{{table}}\n",
    "html": '<p class="hint">{title}</p>\n{table}\n',
}
NOTES = {"text": "{}\n", "markdown": "- {}\n", "latex": "% {}\n"}


def in_lines(runs: Sequence[Run], comparisons: Comparisons, notes: Sequence[str], format: str) -> str:
    """Format a report as text, Markdown or LaTeX, with the notes and the refused comparisons below the tables."""
    parts = ["% needs \\usepackage{booktabs}\n"] if format == "latex" else []
    parts += [write(table, format) for table in tables(runs, comparisons)]
    base = first_answered(runs)
    refused = [why for (first, second), why in comparisons.refused.items() if first == base and runs[second].answers]
    if remarks := [*notes, *(f"not compared: {why}" for why in refused)]:
        parts.append("".join(NOTES[format].format(line) for line in remarks))
    return "\n".join(parts)


def write(table: Table, format: str) -> str:
    """Format a table with its title as text, Markdown, LaTeX (needs booktabs) or HTML."""
    rows = [[_markdown(cell) for cell in row] for row in table.texts] if format == "markdown" else table.texts
    sides = ["right" if is_numeric else "left" for is_numeric in table.numeric]
    body = tabulate(rows, table.headings, STYLES[format], colalign=sides, disable_numparse=True)
    if format == "latex":
        body = re.sub(r"^ *(?=[\[*])", "{}", body, flags=re.MULTILINE)  # else an argument of the \\ or \midrule above
    return LAYOUTS[format].format(title=TITLES[format](table.title), table=body)


def _markdown(text: str) -> str:
    return re.sub(r"([\\`*_\[\]<>|])", r"\\\1", text)


def _latex(text: str) -> str:
    return text.translate(str.maketrans(LATEX_ESCAPE_RULES))


TITLES: dict[str, Callable[[str], str]] = {"text": str, "markdown": _markdown, "latex": _latex, "html": escape}
