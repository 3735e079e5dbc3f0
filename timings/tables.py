"""Markdown tables, printed or written into a document."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from tabulate import tabulate


def markdown(rows: Sequence[Mapping[str, object]]) -> str:
    """Return a table with one line per row. A column that a row lacks is empty."""
    return tabulate(rows, headers="keys", tablefmt="pipe", disable_numparse=True)


def filled(document: Path, sections: Mapping[str, str]) -> str:
    """Return a document with new text between its comments `<!-- name -->` and `<!-- end -->`.

    Args:
        document: A Markdown file.
        sections: The text of each section, by the name in its comment.
    """
    text = document.read_text(encoding="utf-8")
    for name, section in sections.items():
        before, rest = text.split(f"<!-- {name} -->\n")
        text = f"{before}<!-- {name} -->\n\n{section}\n\n{rest[rest.index('<!-- end -->') :]}"
    return text
