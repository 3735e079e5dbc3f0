"""The table of scores, for a terminal and for a log file."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from zoo.metrics import MULTIPLE_CHOICE_TYPES, NUMERIC_TYPES, QUESTION_TYPES

_GROUPS = (
    ("acc", "accuracy", MULTIPLE_CHOICE_TYPES),
    ("mra", "MRA", NUMERIC_TYPES),
    ("all", "all", QUESTION_TYPES),
)


def render(
    result: Mapping[str, Any],
    counts: Mapping[str, int],
    failed_scenes: Sequence[Mapping[str, Any]],
    *,
    title: str,
    missing: Mapping[str, int] | None = None,
    terminal: bool | None = None,
) -> str:
    """The text of the table, and below it what was not answered.

    Args:
        result: as `VSIBenchScore.compute()` returns.
        counts: "questions", "failed", "unparsable", and "filtered" if questions of other types were left out.
        failed_scenes: "scene", "error" and "questions" of each scene that could not be read, or whose questions could
            not be answered; a scene comes once for each error.
        title: stands above the table.
        missing: scenes whose video is absent, and how many questions each has.
        terminal: colors and rules; plain characters (a Markdown table) if False; as stdout is if None.
    """
    terminal = sys.stdout.isatty() if terminal is None else terminal
    table = Table(box=box.HORIZONTALS if terminal else box.MARKDOWN)
    table.add_column("question type", no_wrap=True)
    for heading in ("score (micro)", "macro", "questions"):
        table.add_column(heading, justify="right", no_wrap=True)
    counted = {kind: entry["count"] for kind, entry in result["per_question_type"].items()}
    for kind, entry in result["per_question_type"].items():
        last = kind == list(counted)[-1]
        table.add_row(kind, _number(entry["score"]), "", str(entry["count"]), end_section=last)
    for group, name, types in _GROUPS:
        questions = sum(counted.get(kind, 0) for kind in types)
        means = (_number(result[group][mean]) for mean in ("micro", "macro"))
        table.add_row(name, *means, str(questions), style="bold")
    console = Console(force_terminal=terminal, width=None if terminal else 80)
    with console.capture() as capture:
        console.print(table)
    unparsable = f"; {_plural(counts['unparsable'], 'answer')} could not be parsed: score 0"
    lines = [title, *(line.rstrip() for line in capture.get().splitlines() if line.strip())]
    lines.append(f"{_plural(counts['questions'], 'question')}{unparsable if counts['unparsable'] else ''}")
    if failed_scenes:
        scenes = _plural(len({each["scene"] for each in failed_scenes}), "scene")
        lines.append(f"{_plural(counts['failed'], 'question')} of {scenes} failed: score 0")
        lines += [f"  {s['scene']} ({_plural(s['questions'], 'question')}): {s['error']}" for s in failed_scenes]
    if counts.get("filtered"):
        lines.append(f"{_plural(counts['filtered'], 'question')} of other types left out (--data.question_types)")
    if missing:
        names = ", ".join(list(missing)[:3]) + (", ..." if len(missing) > 3 else "")
        absent = _plural(sum(missing.values()), "question")
        lines.append(f"{absent} left out: the videos of {_plural(len(missing), 'scene')} are missing ({names})")
    return "\n".join(lines)


def _number(score: float | None) -> str:
    return "-" if score is None else f"{score:.3f}"


def _plural(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"
