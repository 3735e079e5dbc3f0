"""A table of a report, independent of its format."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

from callbacks.baselines import BELOW
from commands.reports.bootstrap import could_show

Interval = tuple[float, float]
NULL_RESULT = "Could show"  # in four of five repetitions
# a float is a score in 0..1 or a difference of two; None is an absent number, "" an absent text
Cell = str | int | float | Interval | None


class BelowBlind(float):
    """A score below the best blind baseline of its test."""


@dataclass(frozen=True)
class Table:
    """A table of a report.

    Attributes:
        title: The caption.
        headings: The titles of the columns; the first column names the row.
        rows: The cells.
        signed: Whether the scores are differences.
    """

    title: str
    headings: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    signed: bool = False

    def without_duplicate(self, heading: str, other: str) -> Table:
        """Return the table without a column whose cells all equal those of another one."""
        place, kept = self.headings.index(heading), self.headings.index(other)
        if any(row[place] != row[kept] for row in self.rows):
            return self
        rows = tuple(row[:place] + row[place + 1 :] for row in self.rows)
        return replace(self, headings=self.headings[:place] + self.headings[place + 1 :], rows=rows)

    @cached_property
    def texts(self) -> list[tuple[str, ...]]:
        """The formatted cells."""
        return [tuple(show(cell, self.signed) for cell in row) for row in self.rows]

    @cached_property
    def numeric(self) -> list[bool]:
        """Whether each column holds numbers, which are right-aligned."""
        return [not any(isinstance(row[i], str) for row in self.rows) for i in range(len(self.headings))]


def percent(score: float) -> float:
    """Return a score in percent as it is shown, with one decimal; never -0.0."""
    return round(100 * score, 1) + 0.0


def null_result(interval: Interval | None) -> str:
    """Return the smallest difference in points that could have been shown, where an interval holds 0; else ""."""
    shown = None if interval is None else could_show(*interval)
    return "" if shown is None else f"{percent(shown):.1f}"


def show(cell: Cell, signed: bool = False) -> str:
    """Format a cell; scores in percent with one decimal."""
    if cell is None or cell == "":
        return "-"
    if isinstance(cell, tuple):
        return f"[{', '.join(show(bound, signed=True) for bound in cell)}]"
    if isinstance(cell, float):
        mark = f" {BELOW}" if isinstance(cell, BelowBlind) else ""
        return f"{percent(cell):{'+' if signed else ''}.1f}{mark}"
    return str(cell)
