"""The table of docs/concepts/other_code.md: right answers to VSI-Bench in seven spellings, scored by each scorer.

python -m docs.scorers --vsibench data/vsibench/test.jsonl     # updates the document
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from evaluation.table import count_differing, summarize
from timings.tables import filled, markdown
from zoo.benchmarks import VSIBench
from zoo.benchmarks.scorers import ONES, TENS
from zoo.metrics import with_scores

DOCUMENT, SECTION = Path(__file__).parent / "concepts/other_code.md", "table: scorers"
BENCHMARK = VSIBench()
Answer = Callable[[str, str], str]  # takes the ground truth and the text of the right option
CHOICES: tuple[Answer, ...] = (
    lambda letter, option: letter,
    lambda letter, option: f"{letter}.",
    lambda letter, option: option,  # Qwen's habit
    lambda letter, option: letter.lower(),
    lambda letter, option: f"The answer is {letter}.",
    lambda letter, option: f"<answer>{letter}</answer>",
    lambda letter, option: f"**{letter}**",
)
NUMBERS: tuple[Callable[[str], str], ...] = (
    lambda number: number,
    lambda number: f"{number}.",
    lambda number: f"{number} m",
    lambda number: in_words(round(float(number))),
    lambda number: f"about {number} m",
    lambda number: f"<answer>{number}</answer>",
    lambda number: f"**{number}**",
)
EXAMPLES = [(choice("B", "B. chair"), number("3.4")) for choice, number in zip(
    CHOICES, (*NUMBERS[:3], lambda number: "three", *NUMBERS[4:]), strict=True)]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vsibench", type=Path, required=True)
    rows = [json.loads(line) for line in parser.parse_args().vsibench.read_text(encoding="utf-8").splitlines()]
    DOCUMENT.write_text(filled(DOCUMENT, {SECTION: table(rows)}), encoding="utf-8")


def table(rows: list[Mapping[str, Any]]) -> str:
    """Return the table for questions of VSI-Bench."""
    lines = []
    for form, (choice, number) in enumerate(EXAMPLES):
        records = [record(row, form) for row in rows]
        line = {"a right answer, written as": f"`{choice}`, `{number}`"}
        scores = []
        for scorer in BENCHMARK.scorers:
            scored = with_scores(records, BENCHMARK, scorer)
            found = summarize(scored, BENCHMARK, scorer)
            line[f"{scorer}: acc., MRA"] = f"{found['acc']['micro']:.3f}, {found['mra']['micro']:.3f}"
            scores.append({each["id"]: each["score"] for each in scored})
        lines.append({**line, "scorers differ on": f"{count_differing(scores):,}"})
    return markdown(lines)


def record(row: Mapping[str, Any], form: int) -> dict[str, Any]:
    """Return the right answer to a question, in one of the spellings."""
    truth = str(row["ground_truth"])
    if row["options"]:
        answer = CHOICES[form](truth, next(each for each in row["options"] if each.startswith(f"{truth}.")))
    else:
        answer = NUMBERS[form](truth)
    kept = {"id": str(row["id"]), "question_type": row["question_type"], "ground_truth": truth}
    return {**kept, "prediction": answer, "error": None}


def in_words(number: int) -> str:
    """Return a whole number in English words."""
    if number < 20:
        return ONES.split()[number]
    if number < 100:
        tens = TENS.split()[number // 10 - 2]
        return f"{tens}-{in_words(number % 10)}" if number % 10 else tens
    rest = f" and {in_words(number % 100)}" if number % 100 else ""
    return f"{in_words(number // 100)} hundred{rest}"


if __name__ == "__main__":
    main()
