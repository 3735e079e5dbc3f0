"""Reads and checks predictions.jsonl; errors name the line."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from zoo.benchmarks import Benchmark
from zoo.errors import InputError, did_you_mean
from zoo.files.atomic_io import parse_json

REQUIRED: dict[str, tuple[type, ...]] = {
    "id": (str, int), "question_type": (str,), "prediction": (str,), "ground_truth": (str,)
}  # fmt: skip


@dataclass(frozen=True)
class Answer:
    """One line: a question and its answer, with the score in the file, and the benchmark and scorer that made it.

    `error` says why a question failed; None if it was answered. `score` is in 0..1; None if it is still to be computed.
    """

    id: str
    question_type: str
    prediction: str
    ground_truth: str
    scene: str = ""
    question: str = ""
    prompt: str = ""
    frames: tuple[int, ...] = ()
    error: str | None = None
    score: float | None = None
    benchmark: str | None = None
    scorer: str | None = None


def read_predictions(path: Path, benchmark: Benchmark) -> tuple[list[Answer], list[str]]:
    """Read the answers of a file, each id once, and remarks about dropped lines.

    An incomplete last line and repeated lines are dropped.

    Args:
        path: A file of JSON lines.
        benchmark: Defines the question types.

    Raises:
        InputError: The file is absent or empty, or a line is not JSON, lacks a field, has a wrong type or an unknown
            question type, or differs from an earlier line with its id; names the line.
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
            record = parse_json(line)
            answer = _answer(record, benchmark)
        except InputError as error:
            raise InputError(f"{path}, line {number}: {error}") from error
        except ValueError as error:  # UnicodeDecodeError is one
            if number == len(lines):  # it has no end of line
                remarks.append(f"line {number}, the last, is incomplete: dropped")
                continue
            raise InputError(f"{path}, line {number}: not valid JSON: {error}") from error
        before, former, _ = first.setdefault(answer.id, (number, record, answer))
        repeats += before != number
        if former != record:
            changed = next(key for key in former | record if former.get(key) != record.get(key))
            raise InputError(
                f"{path}, line {number}: question {answer.id} has another {changed} in line {before}: keep one of the "
                "two lines"
            )
    if repeats:
        remarks.append(f"{repeats} {'line repeats' if repeats == 1 else 'lines repeat'} an earlier one: dropped")
    if not first:
        raise InputError(f"{path} has no answers")
    return [answer for *_, answer in first.values()], remarks


def recorded_benchmark(path: Path) -> str | None:
    """Return the benchmark that the first line of a file of answers records; None without one."""
    try:
        with path.open("rb") as file:
            name = parse_json(file.readline())["benchmark"]
    except (OSError, ValueError, LookupError, TypeError):
        return None  # as of the answers of another program
    return name if isinstance(name, str) else None


def _answer(record: Any, benchmark: Benchmark) -> Answer:
    if not isinstance(record, dict):
        raise InputError(f"expected an object with the fields {', '.join(REQUIRED)}")
    for key, kinds in REQUIRED.items():
        if not isinstance(record.get(key), kinds):
            expected = "a string or an integer" if int in kinds else "a string"
            found = "" if key in record else f": the line has {', '.join(record)}{did_you_mean(key, record)}"
            raise InputError(f"{key} must be {expected}, got {json.dumps(record.get(key))[:40]}{found}")
    benchmark.check_question_type(record["question_type"])
    if record["ground_truth"]:
        benchmark.check_ground_truth(str(record["ground_truth"]), record["question_type"])
    if (asked := record.get("benchmark") or benchmark.name) != benchmark.name:
        raise InputError(f"an answer to {asked}, not to {benchmark.name}: score --benchmark {asked}")
    frames = record.get("frames") or []
    if not (isinstance(frames, list) and all(isinstance(frame, int) for frame in frames)):
        raise InputError(f"frames must be a list of integers, got {json.dumps(frames)[:40]}")
    score = record.get("score")
    if score is not None and (not isinstance(score, int | float) or isinstance(score, bool) or not 0 <= score <= 1):
        raise InputError(f"score must be a number in 0..1 or null, got {json.dumps(score)[:40]}")
    return Answer(
        **{key: _encodable(record[key]) for key in REQUIRED},
        **{key: _encodable(record.get(key) or "") for key in ("scene", "question", "prompt")},
        frames=tuple(frames),
        error=_encodable(record["error"]) if record.get("error") else None,
        score=score,
        **{key: record[key] for key in ("benchmark", "scorer") if isinstance(record.get(key), str)},
    )


def _encodable(value: object) -> str:
    """Return a text with escapes in place of halves of surrogate pairs, such as bytes of a file's name."""
    return str(value).encode(errors="backslashreplace").decode()
