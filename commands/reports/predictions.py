"""Reads predictions.jsonl back: every line is checked, and what is wrong with one is said with its number."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from zoo.errors import InputError
from zoo.metrics import QUESTION_TYPES

TEXTS = ("question_type", "prediction", "ground_truth")


@dataclass(frozen=True)
class Answer:
    """One line: a question, what was answered, and from what. `recorded` is the score that stands in the file."""

    id: str
    question_type: str
    prediction: str
    ground_truth: str
    scene: str = ""
    question: str = ""
    prompt: str = ""
    frames: tuple[int, ...] = ()
    error: str | None = None
    recorded: float | None = None


@dataclass(frozen=True)
class Predictions:
    """The answers of a file, each id once, and what else its reader should know: what was dropped."""

    answers: tuple[Answer, ...]
    remarks: tuple[str, ...]


def read_predictions(path: Path) -> Predictions:
    """The answers in a file.

    A last line that was cut off while it was written is dropped, and so is a line that repeats an earlier one; both
    are remarked on. Two different answers with one id are refused: one of them would be scored by chance.

    Raises:
        InputError: the file and the line, and what is wrong: no file, no JSON, a field that is absent or of a wrong
            kind, a question type that is unknown, an id that has two answers, nothing to score.
    """
    try:
        lines = path.read_bytes().split(b"\n")  # "\n" only: an answer may hold other line separators
    except OSError as error:
        raise InputError(f"{path} can't be read: {error.strerror}") from error
    remarks, repeats = [], 0
    first: dict[str, tuple[int, dict[str, Any], Answer]] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except ValueError as error:  # UnicodeDecodeError is one
            if number == len(lines):  # it has no end of line
                remarks.append(f"line {number}, the last, was cut off while it was written: dropped")
                continue
            raise InputError(f"{path}, line {number}: not valid JSON: {error}") from error
        answer = _answer(record, f"{path}, line {number}")
        fields = {key: value for key, value in record.items() if key != "versions"}
        before, former, _ = first.setdefault(answer.id, (number, fields, answer))
        if before != number:
            repeats += 1
            if former != fields:
                changed = next(key for key in former | fields if former.get(key) != fields.get(key))
                raise InputError(
                    f"{path}, line {number}: question {answer.id} has another {changed} in line {before}: two runs in "
                    "one file? Keep one line of the two"
                )
    if repeats:
        remarks.append(f"{repeats} {'line repeats' if repeats == 1 else 'lines repeat'} an earlier one: dropped")
    if not first:
        raise InputError(f"{path} holds no answer")
    return Predictions(tuple(answer for *_, answer in first.values()), tuple(remarks))


def _answer(record: Any, where: str) -> Answer:
    if not isinstance(record, dict):
        raise InputError(f"{where}: not an object with the fields id, {', '.join(TEXTS)}")
    if isinstance(record.get("id"), bool) or not isinstance(record.get("id"), (str, int)):
        raise InputError(f"{where}: no id, which is to be text or a whole number")
    for key in TEXTS:
        if not isinstance(record.get(key), str):
            what = f"{json.dumps(record[key])[:40]} is no text" if key in record else "absent"
            raise InputError(f"{where}: {key}: {what}")
    if record["question_type"] not in QUESTION_TYPES:
        kind = record["question_type"]
        raise InputError(f"{where}: question_type {kind!r} is none of {', '.join(QUESTION_TYPES)}")
    frames = record.get("frames") or []
    if not (isinstance(frames, list) and all(isinstance(frame, int) for frame in frames)):
        raise InputError(f"{where}: frames: {json.dumps(frames)[:40]} is no list of whole numbers")
    texts = {key: _text(record, key) for key in ("scene", "question", "prompt")}
    score = record.get("score")
    return Answer(
        id=str(record["id"]),
        **{key: record[key] for key in TEXTS},
        **texts,
        frames=tuple(frames),
        error=None if record.get("error") is None else str(record["error"]),
        recorded=float(score) if isinstance(score, (int, float)) else None,
    )


def _text(record: Mapping[str, Any], key: str) -> str:
    return str(record.get(key) or "")
