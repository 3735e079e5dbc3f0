"""Summarize a test's records, and render the table of scores for a terminal or a log file."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations, product
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from evaluation.baselines import BELOW, MEANING, NAMES, SAME, is_below, verdict
from zoo.benchmarks import Benchmark
from zoo.errors import printable
from zoo.metrics import BenchmarkScore

ONE_SIDED = 1.645  # standard errors by which a hit test must exceed 1, at a level of 5 %
WIDTH = 150  # wide enough for the table even in a terminal of 80 columns, so that no number is cut off
HEADINGS = {"acc": "accuracy", "mra": "MRA", "all": "all"}
OWN_HEADINGS = {"acc": "choices and texts", "mra": "numbers", "all": "all"}  # whose scores need be no MRA
MEAN_COLUMNS = "micro", "macro"
Record = Mapping[str, Any]  # record of a question, see `zoo.metrics.with_scores`
Scores = Mapping[str, Any]  # scores of a test, see `summarize`


def summarize(
    records: Iterable[Record], benchmark: Benchmark, scorer: str, result: Scores | None = None
) -> dict[str, Any]:
    """Return the scores and counts of a whole test, as metrics.json holds them.

    Args:
        records: The scored records of all questions, each once.
        benchmark: The benchmark of the questions.
        scorer: Name of the scorer that made the scores.
        result: Result of `BenchmarkScore.compute`. None computes it from the records.

    Returns:
        The result; "counts" of scored, failed and unparsable questions; "failed_scenes"; "benchmark" and "scorer";
        "grouped_types", which its macro means count as one type; "captions", measures of the whole test, for benchmarks
        that have some; "objectives", mean errors over scenes of predicted cameras and depth, and "unmeasured_scenes",
        if there are any.
    """
    records = list(records)
    if result is None:
        metric = BenchmarkScore(benchmark, scorer)
        metric.add(records)
        result = metric.compute()
    scored = [record for record in records if record["score"] is not None]
    answered = [record for record in scored if not record["error"]]
    unparsable = sum(not benchmark.is_parsable(r["prediction"], r["question_type"], scorer) for r in answered)
    failed = Counter((record["scene"], record["error"]) for record in scored if record["error"])
    answers = ["" if record["error"] else record["prediction"] for record in scored]
    captions = benchmark.corpus_scores(answers, [record["ground_truth"] for record in scored]) if scored else {}
    errors = {record["scene"]: record["objectives"] for record in records if "objectives" in record}
    by_name: dict[str, list[float]] = {}
    for name, error in (pair for own in errors.values() for pair in own.items()):
        by_name.setdefault(name, []).append(error)
    unmeasured = sorted({(record["scene"], record["unmeasured"]) for record in records if record.get("unmeasured")})
    return {
        **result,
        "counts": {"questions": len(scored), "failed": len(scored) - len(answered), "unparsable": unparsable},
        "failed_scenes": [{"scene": s, "error": e, "questions": n} for (s, e), n in sorted(failed.items())],
        **({"unmeasured_scenes": [{"scene": s, "error": e} for s, e in unmeasured]} if unmeasured else {}),
        "benchmark": benchmark.name,
        "scorer": scorer,
        "grouped_types": {name: list(kinds) for name, kinds in benchmark.grouped_types(scorer).items()},
        **({"captions": captions} if captions else {}),
        **({"objectives": {name: sum(each) / len(each) for name, each in by_name.items()}} if by_name else {}),
    }


def render(
    metrics: Scores,
    benchmark: Benchmark,
    *,
    title: str,
    chosen_by: str = "",
    remarks: Sequence[str] = (),
    terminal: bool | None = None,
) -> str:
    """Return the text of the table and, below it, the failed, filtered and missing questions.

    A score below its best blind baseline is marked. The columns of a group are micro / macro means.

    Args:
        metrics: The scores of a test, with "baselines" if there are any.
        benchmark: The benchmark of the questions.
        title: The line above the table, such as the model and the split.
        chosen_by: The option that filtered questions.
        remarks: Remarks about the baselines.
        terminal: True adds colors and rules, False makes a plain Markdown table, None decides by stdout.
    """
    terminal = sys.stdout.isatty() if terminal is None else terminal
    counts, blind, scorer = metrics["counts"], metrics.get("baselines", {}), metrics["scorer"]
    is_own = not benchmark.name.isidentifier()  # a class path, or OwnQuestions(...)
    groups, title = (OWN_HEADINGS, f"{title}: {benchmark.name}") if is_own else (HEADINGS, title)
    table = Table(box=box.HORIZONTALS if terminal else box.MARKDOWN)
    table.add_column("question type", no_wrap=True)
    shown = [name for name in blind if name in NAMES]  # oracles have long names and follow below
    for heading in (*MEAN_COLUMNS, *shown, "questions"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("scorer", no_wrap=True)
    types = metrics["per_question_type"]
    for kind, entry in types.items():
        others = {name: each["per_question_type"].get(kind, {}).get("score") for name, each in blind.items()}
        beside = (_number(others[name]) for name in shown)
        cells = (kind, _marked(entry["score"], others), "", *beside, str(entry["count"]), scorer)
        table.add_row(*cells, end_section=kind == list(types)[-1])
    for group, kinds in benchmark.groups.items():
        questions = sum(types[kind]["count"] for kind in kinds if kind in types)
        if group != "all" and questions in (0, counts["questions"]):
            continue  # the group is empty, or equal to all
        every = {name: each[group] for name, each in blind.items()}
        means = [
            _marked(metrics[group][mean], {name: each[mean] for name, each in every.items()}) for mean in MEAN_COLUMNS
        ]
        beside = (_both(every[name]) for name in shown)
        table.add_row(groups[group], *means, *beside, str(questions), scorer, style="bold")
    console = Console(force_terminal=terminal, width=WIDTH)
    with console.capture() as capture:
        console.print(table)
    text = capture.get()
    lines = [title, *(line.rstrip() for line in text.splitlines() if line.strip())]
    lines += [MEANING] if f" {BELOW}" in text else []
    lines += [f"{name} {_both(each['all'])}{_details(each)}" for name, each in blind.items() if name not in shown]
    lines += _errors_in_degrees(metrics, shown)
    said = verdict(metrics["all"]["macro"], {name: each["all"]["macro"] for name, each in blind.items()})
    lines += [said] if said else []
    return "\n".join([*lines, *map(printable, (*remarks, *_notes(metrics, chosen_by)))])


def _notes(metrics: Scores, chosen_by: str) -> list[str]:
    """Return the lines below a table."""
    counts = metrics["counts"]
    unparsable = f"; {_plural(counts['unparsable'], 'answer')} could not be parsed: score 0"
    lines = [f"{_plural(counts['questions'], 'question')}{unparsable if counts['unparsable'] else ''}"]
    for name, value in metrics.get("captions", {}).items():
        if name == "skipped":
            lines += [f"{skipped} skipped: {remedy}" for skipped, remedy in value.items()]
        else:
            lines.append(f"{name} {value if isinstance(value, str) else f'{value:.4f}'}")
    if failed := metrics["failed_scenes"]:
        scenes = _plural(len({each["scene"] for each in failed}), "scene")
        lines.append(f"{_plural(counts['failed'], 'question')} of {scenes} failed: score 0")
        lines += [f"  {s['scene']} ({_plural(s['questions'], 'question')}): {_reason(s)}" for s in failed]
    if unmeasured := metrics.get("unmeasured_scenes"):
        lines.append(f"errors of objectives: {_plural(len(unmeasured), 'scene')} could not be measured")
        lines += [f"  {each['scene']}: {_reason(each)}" for each in unmeasured]
    if counts.get("filtered"):
        lines.append(f"{_plural(counts['filtered'], 'question')} left out by {chosen_by}")
    if missing := metrics.get("missing_scenes"):
        names = ", ".join(list(missing)[:3]) + (", ..." if len(missing) > 3 else "")
        absent = _plural(sum(missing.values()), "question")
        lines.append(f"{absent} left out: the videos of {_plural(len(missing), 'scene')} are missing ({names})")
    return lines + [f"{name} {error:.3g}" for name, error in metrics.get("objectives", {}).items()]


def side_by_side(
    tests: Sequence[Scores], scores: Sequence[Mapping[str, float]], benchmark: Benchmark, *, title: str
) -> str:
    """Return a Markdown table of the same answers with several scorers, and the number of answers that differ.

    Args:
        tests: The scores by each scorer, with "baselines". A score below them is marked.
        scores: For each scorer, the score of each answer by its id.
        benchmark: The benchmark of the questions.
        title: The line above the table.
    """
    scorers, blind = [each["scorer"] for each in tests], [each["baselines"] for each in tests]

    def row(name: str, *keys: str) -> list[str]:
        others = [{own: _at(baseline, keys) for own, baseline in each.items()} for each in blind]
        return [name, *(_marked(_at(each, keys), own) for each, own in zip(tests, others, strict=True))]

    rows = [
        *(row(kind, "per_question_type", kind, "score") for kind in tests[0]["per_question_type"]),
        *(row(f"{group} {mean}", group, mean) for group, mean in product(benchmark.groups, MEAN_COLUMNS)),
    ]
    for name in dict.fromkeys(name for each in blind for name in each):
        for mean in MEAN_COLUMNS:
            own = (_number(_at(each, (name, "all", mean))) for each in blind)
            rows.append([f"{NAMES.get(name, name)}: all {mean}", *own])
    rows.append(["could not be parsed", *(str(each["counts"]["unparsable"]) for each in tests)])
    pairs = [
        f"  {first} and {second}: {sum(abs(one[id] - other[id]) > SAME for id in one)}"
        for (first, one), (second, other) in combinations(zip(scorers, scores, strict=True), 2)
    ]
    some = count_differing(scores)
    lines = [markdown_table([["question type", *scorers], *rows], has_numbers=True)]
    lines += ["", MEANING] if any(cell.endswith(f" {BELOW}") for cells in rows for cell in cells) else []
    return "\n".join([title, "", *lines, "", f"answers on which scorers differ: {some} of {len(scores[0])}", *pairs])


def markdown_table(rows: Sequence[Sequence[str]], *, has_numbers: bool = False) -> str:
    """Return a Markdown table without padding, whose head is the first row.

    With `has_numbers` the cells stand on the right, except in the first column.
    """
    head, *body = ([markdown_cell(text) for text in row] for row in rows)
    rule = ["---", *["---:" if has_numbers else "---"] * (len(head) - 1)]
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, rule, *body))


def markdown_cell(text: str) -> str:
    """Return the text of a cell, in which line breaks and bars do not end the cell."""
    return " ".join(text.split()).replace("|", r"\|")


def count_differing(scores: Sequence[Mapping[str, float]]) -> int:
    """Return the number of answers that get different scores. The scores of each scorer are given by id."""
    return sum(max(own) - min(own) > SAME for own in zip(*(each.values() for each in scores), strict=True))


def _at(result: Any, keys: Iterable[str]) -> float | None:
    """Return the score at a path of keys, or None if there is none."""
    for key in keys:
        result = None if result is None else result.get(key)
    return None if result is None else float(result)


def _number(score: float | None) -> str:
    return "-" if score is None else f"{score:.3f}"


def _marked(score: float | None, baselines: Mapping[str, float | None]) -> str:
    return f"{_number(score)} {BELOW}" if is_below(score, baselines) else _number(score)


def _both(means: Mapping[str, float | None]) -> str:
    """Return the micro and the macro mean, or one number if they are equal."""
    return " / ".join(dict.fromkeys(_number(means[mean]) for mean in MEAN_COLUMNS))


def _reason(failed: Mapping[str, str]) -> str:
    """Return a scene's error without the scene's name, with which it begins unless the model failed."""
    return failed["error"].removeprefix(f"{failed['scene']}: ")


def _errors_in_degrees(metrics: Scores, shown: Sequence[str]) -> list[str]:
    """Return the mean error of each type of directions, beside those of the named baselines."""
    lines = []
    for kind, entry in metrics["per_question_type"].items():
        types = [(NAMES[name], metrics["baselines"][name]["per_question_type"].get(kind, {})) for name in shown]
        errors = [("mean error", entry), *types]
        found = [f"{name} {own['degrees']:.1f}°" for name, own in errors if "degrees" in own]
        lines += [f"{kind}: {', '.join(found)}"] if "degrees" in entry else []
    return lines


def _details(baseline: Scores) -> str:
    """Return the errors in degrees of a baseline, and whether the test's answers show more knowledge than it has."""
    text = "".join(f", {own['degrees']:.1f}°" for own in baseline["per_question_type"].values() if "degrees" in own)
    if hits := baseline.get("hits"):
        text += f"; hits {hits['mean']:.2f} ± {hits['standard_error']:.2f}"
        text += ": knows more" if hits["mean"] - ONE_SIDED * hits["standard_error"] > 1 else ""
    return text


def _plural(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"
