"""The questions and answers of a page; each distinct text is stored once."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any

from commands.reports.predictions import Answer
from commands.reports.runs import Run


class Distinct(dict[Hashable, int]):
    """The index of each distinct value, in the order of first use."""

    def __missing__(self, value: Hashable) -> int:
        self[value] = len(self)
        return self[value]


def question_data(runs: Sequence[Run]) -> dict[str, Any]:
    """Return the data of the view of single questions.

    {"texts": [...], "frames": [[...], ...], "types": [...],
     "questions": one row per question, [id, scene, type, question, ground truth], where all but id are indices,
     "answers": for each run, null or columns {"prediction", "score", "frames", "before", "after", "error"} with one
     value per question, -1 if the run lacks it}

    A prompt is the text `before`, the question and the text `after`; if `after` is -1 it is `before` alone.
    """
    types = runs[0].benchmark.question_types
    texts, frames, rows = Distinct(), Distinct(), Distinct()
    asked = [{rows[_row(answer, types, texts)]: answer for answer in run.answers} for run in runs]
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
        "types": types,
        "questions": list(rows),
        "answers": answers,
        "texts": list(texts),
        "frames": list(frames),
    }


def _row(answer: Answer, types: Sequence[str], texts: Distinct) -> tuple[str | int, ...]:
    kind = types.index(answer.question_type)
    return answer.id, texts[answer.scene], kind, texts[answer.question], texts[answer.ground_truth]
