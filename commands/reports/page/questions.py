"""The questions and answers of a page, with every text once: what repeats is a number."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any

from commands.reports.predictions import Answer
from commands.reports.runs import Run
from zoo.metrics import QUESTION_TYPES


class Distinct(dict[Hashable, int]):
    """The place of each value among those that came before, in order."""

    def __missing__(self, value: Hashable) -> int:
        self[value] = len(self)
        return self[value]


def question_data(runs: Sequence[Run]) -> dict[str, Any]:
    """What the view of single questions is made of.

    {"texts": [...], "frames": [[...], ...], "types": [...],
     "questions": a row a question, [id, scene, type, question, ground truth], where all but id are places in a list,
     "answers": for each run, null or {"prediction", "score", "frames", "before", "after", "error"}: a column of each, a
     value a question, -1 where it wasn't asked}

    The prompt is the text `before`, the question, and the text `after`; after -1 it is `before` alone.
    """
    texts, frames, rows = Distinct(), Distinct(), Distinct()
    asked = [{rows[_row(answer, texts)]: answer for answer in run.answers} for run in runs]
    answers: list[dict[str, list[Any]] | None] = []
    for run, own in zip(runs, asked, strict=True):
        columns: dict[str, list[Any]] = {
            name: [-1] * len(rows) for name in ("prediction", "score", "frames", "before", "after", "error")
        }
        for row, answer in own.items():
            before, question, after = answer.prompt.partition(answer.question or answer.prompt + "?")
            columns["prediction"][row] = texts[answer.prediction]
            columns["score"][row] = round(run.scores[answer.id], 4)
            columns["frames"][row] = frames[answer.frames]
            columns["before"][row] = texts[before]
            columns["after"][row] = texts[after] if question else -1
            columns["error"][row] = -1 if not answer.error else texts[answer.error]
        answers.append(columns if own else None)
    return {
        "types": QUESTION_TYPES,
        "questions": list(rows),
        "answers": answers,
        "texts": list(texts),
        "frames": list(frames),
    }


def _row(answer: Answer, texts: Distinct) -> tuple[str | int, ...]:
    kind = QUESTION_TYPES.index(answer.question_type)
    return answer.id, texts[answer.scene], kind, texts[answer.question], texts[answer.ground_truth]
