"""The table of scores, for a terminal or a log file."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations, product
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from callbacks.baselines.blind import BlindBaselines
from callbacks.baselines.mark import BELOW, MEANING, NAMES, is_below
from callbacks.scoring import Tally

SAME = 1e-6  # a float32 mean and a float64 one of the same thresholds
WIDTH = 150  # enough for the table, also in a terminal of 80 columns: a number is not to be cut off
GROUPS = {"acc": "accuracy", "mra": "MRA", "all": "all"}
MEANS = "micro", "macro"


def render(
    scored: Tally,
    *,
    title: str,
    missing: Mapping[str, int] | None = None,
    filtered: int = 0,
    chosen_by: str = "",
    blind: BlindBaselines | None = None,
    terminal: bool | None = None,
) -> str:
    """Return the text of the table and, below it, the failed, filtered and missing questions.

    A score below the best of its blind baselines is marked. Those of a group are micro / macro means.

    Args:
        scored: The scores of a test.
        title: The line above the table, such as the model and the split.
        missing: Number of questions of each scene whose video is absent.
        filtered: Number of questions left out.
        chosen_by: The option that left questions out.
        blind: The blind baselines, a column each; None is none.
        terminal: Colors and rules if True, a plain Markdown table if False, as stdout is if None.
    """
    terminal = sys.stdout.isatty() if terminal is None else terminal
    result, counts, blind = scored.result, scored.counts, blind or BlindBaselines()
    table = Table(box=box.HORIZONTALS if terminal else box.MARKDOWN)
    table.add_column("question type", no_wrap=True)
    for heading in (*MEANS, *blind.scores, "questions"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("scorer", no_wrap=True)
    types = result["per_question_type"]
    for kind, entry in types.items():
        others = [each["per_question_type"].get(kind, {}).get("score") for each in blind.scores.values()]
        cells = (kind, _marked(entry["score"], others), "", *map(_number, others), str(entry["count"]), scored.scorer)
        table.add_row(*cells, end_section=kind == list(types)[-1])
    for group, kinds in scored.benchmark.groups.items():
        questions = sum(types[kind]["count"] for kind in kinds if kind in types)
        if group != "all" and questions in (0, counts["questions"]):
            continue  # the group is empty, or equal to all
        every = [each[group] for each in blind.scores.values()]
        means = [_marked(result[group][mean], [each[mean] for each in every]) for mean in MEANS]
        table.add_row(GROUPS[group], *means, *map(_both, every), str(questions), scored.scorer, style="bold")
    console = Console(force_terminal=terminal, width=WIDTH)
    with console.capture() as capture:
        console.print(table)
    shown = capture.get()
    unparsable = f"; {_plural(counts['unparsable'], 'answer')} could not be parsed: score 0"
    lines = [title, *(line.rstrip() for line in shown.splitlines() if line.strip())]
    lines += [MEANING] if f" {BELOW}" in shown else []
    lines += blind.remarks
    lines.append(f"{_plural(counts['questions'], 'question')}{unparsable if counts['unparsable'] else ''}")
    lines += [f"{name} {value if isinstance(value, str) else f'{value:.4f}'}" for name, value in _flat(scored.corpus)]
    if failed := scored.failed_scenes:
        scenes = _plural(len({each["scene"] for each in failed}), "scene")
        lines.append(f"{_plural(counts['failed'], 'question')} of {scenes} failed: score 0")
        lines += [f"  {s['scene']} ({_plural(s['questions'], 'question')}): {s['error']}" for s in failed]
    if unmeasured := scored.unmeasured_scenes:
        lines.append(f"what objectives predict of {_plural(len(unmeasured), 'scene')} could not be measured")
        lines += [f"  {each['scene']}: {each['error']}" for each in unmeasured]
    if filtered:
        lines.append(f"{_plural(filtered, 'question')} left out by {chosen_by}")
    if missing:
        names = ", ".join(list(missing)[:3]) + (", ..." if len(missing) > 3 else "")
        absent = _plural(sum(missing.values()), "question")
        lines.append(f"{absent} left out: the videos of {_plural(len(missing), 'scene')} are missing ({names})")
    return "\n".join(lines)


def side_by_side(tallies: Sequence[Tally], blind: Sequence[BlindBaselines], *, title: str) -> str:
    """Return a Markdown table of the same answers with several scorers, and the number of answers that differ.

    Args:
        tallies: The scores, one per scorer.
        blind: The blind baselines by the same scorers; a score below the best of its own is marked.
        title: The line above the table.
    """
    first, scorers = tallies[0], [each.scorer for each in tallies]

    def row(name: str, *keys: str) -> list[str]:
        others = [[_at(baseline, keys) for baseline in each.scores.values()] for each in blind]
        return [name, *(_marked(_at(each.result, keys), own) for each, own in zip(tallies, others, strict=True))]

    rows = [
        *(row(kind, "per_question_type", kind, "score") for kind in first.result["per_question_type"]),
        *(row(f"{group} {mean}", group, mean) for group, mean in product(first.benchmark.groups, MEANS)),
    ]
    for name in dict.fromkeys(name for each in blind for name in each.scores):
        for mean in MEANS:
            cells = (_at(each.scores, (name, "all", mean)) for each in blind)
            rows.append([f"{NAMES[name]}: all {mean}", *map(_number, cells)])
    rows.append(["could not be parsed", *(str(each.counts["unparsable"]) for each in tallies)])
    pairs = [
        f"  {a.scorer} and {b.scorer}: {sum(abs(a.scores[id] - b.scores[id]) > SAME for id in a.scores)}"
        for a, b in combinations(tallies, 2)
    ]
    some = sum(max(own) - min(own) > SAME for own in zip(*(each.scores.values() for each in tallies), strict=True))
    table = [["question type", *scorers], ["---", *["---:"] * len(scorers)], *rows]
    lines = [f"| {' | '.join(cells)} |" for cells in table]
    lines += ["", MEANING] if any(cell.endswith(f" {BELOW}") for cells in rows for cell in cells) else []
    return "\n".join([title, "", *lines, "", f"answers on which scorers differ: {some} of {len(first.scores)}", *pairs])


def _at(result: Mapping[str, Any], keys: Iterable[str]) -> float | None:
    """Return the score that some keys lead to; None where there is none."""
    found: Any = result
    for key in keys:
        found = None if found is None else found.get(key)
    return None if found is None else float(found)


def _flat(corpus: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """Return the measures of a whole test, and what each skipped one needs."""
    values = [(name, value) for name, value in corpus.items() if name != "skipped"]
    return values + [(f"{name} skipped:", remedy) for name, remedy in corpus.get("skipped", {}).items()]


def _number(score: float | None) -> str:
    return "-" if score is None else f"{score:.3f}"


def _marked(score: float | None, blind: Iterable[float | None]) -> str:
    return f"{_number(score)} {BELOW}" if is_below(score, blind) else _number(score)


def _both(means: Mapping[str, float | None]) -> str:
    """Return the micro and the macro mean; one number where they are equal."""
    return " / ".join(dict.fromkeys(_number(means[mean]) for mean in MEANS))


def _plural(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"
