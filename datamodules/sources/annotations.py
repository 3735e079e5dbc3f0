"""Questions in VSI-Bench's format, and the folder layout that goes with them.

    <root>/<name>.jsonl                         a question a line; or <name>.parquet, a question a row
    <root>/<dataset>/<scene_name>.mp4           or .mov, .avi, .mkv, .webm, or a folder of frames of that name
    <root>/<dataset>/<scene_name>.cameras.json  optional: a camera for each raw frame
    <root>/<dataset>/<scene_name>.depth/        optional: a depth image for each raw frame, see `datamodules.depth`

A question: id, dataset, scene_name, question_type, question, ground_truth, and options: a list, or null for
numeric questions.
"""

from __future__ import annotations

import json
import math
from collections.abc import Container, Iterator
from pathlib import Path
from typing import Any

from datamodules.depth import find_depth
from datamodules.scenes import Question, Scene
from datamodules.sources.base import Missing, by_type
from datamodules.video import VIDEO_SUFFIXES
from zoo.metrics import MULTIPLE_CHOICE_TYPES, QUESTION_TYPES

REQUIRED = ("id", "dataset", "scene_name", "question_type", "question", "ground_truth")


def read_questions(path: str | Path) -> dict[str, list[Question]]:
    """The questions of each "<dataset>/<scene_name>"; scenes and questions in the order of the file.

    Args:
        path: a .jsonl file, or a .parquet file with the same columns (needs pyarrow).

    Raises:
        ValueError: with file and line: invalid JSON, a missing field, an unknown question type, an id that is
            taken, options that don't fit the type or the answer; a file without questions.
        FileNotFoundError: no such file.
    """
    path = Path(path)
    scenes: dict[str, list[Question]] = {}
    line_of_id: dict[str, int] = {}
    for number, row in read_parquet(path) if path.suffix == ".parquet" else read_jsonl(path):
        where = f"{path}:{number}"
        absent = [field for field in REQUIRED if row.get(field) is None]
        if absent:
            raise ValueError(f"{where}: missing {', '.join(absent)}: a question has {', '.join(REQUIRED)}")
        question = _question(row, where)
        if question.id in line_of_id:
            raise ValueError(f"{where}: id {question.id} is taken by line {line_of_id[question.id]}: give each its own")
        line_of_id[question.id] = number
        scenes.setdefault(f"{row['dataset']}/{row['scene_name']}", []).append(question)
    if not scenes:
        raise ValueError(f"{path}: no questions in this file: a split needs at least one")
    return scenes


def read_layout(
    root: str | Path, annotations: str | Path, left_out: Container[str] = ()
) -> tuple[list[Scene], Missing]:
    """(scenes in the order of the file, those whose video is absent).

    Args:
        annotations: a file name in `root`, or an absolute path.
        left_out: ids of questions that don't count; a scene without others doesn't either.

    Raises what `read_questions` raises.
    """
    root = Path(root)
    scenes: list[Scene] = []
    missing: Missing = {}
    for name, asked in read_questions(root / annotations).items():
        questions = [question for question in asked if question.id not in left_out]
        if not questions:
            continue
        video = find_video(root, name)
        if video is None:
            missing[name] = by_type(questions)
            continue
        scenes.append(Scene(name, video, tuple(questions), find_cameras(video), find_depth(video)))
    return scenes, missing


def find_video(root: Path, name: str) -> Path | None:
    """The video file of the scene "<dataset>/<scene_name>", else its folder of frames, else None."""
    candidates = [root / f"{name}{suffix}" for suffix in VIDEO_SUFFIXES]
    if video := next((file for file in candidates if file.is_file()), None):
        return video
    return root / name if (root / name).is_dir() else None


def find_cameras(video: Path) -> Path | None:
    """The cameras file beside a video file or a folder of frames, or None."""
    name = video.name if video.is_dir() else video.stem
    cameras = video.with_name(f"{name}.cameras.json")
    return cameras if cameras.is_file() else None


def read_jsonl(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """(line number from 1, object) of each line that isn't empty. Raises ValueError, naming the line."""
    with path.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except ValueError as error:  # neither JSON nor UTF-8
                raise ValueError(f"{path}:{number}: not valid JSON ({error})") from error
            if not isinstance(row, dict):
                raise ValueError(f"{path}:{number}: a question is a JSON object, this is a {type(row).__name__}")
            yield number, row


def read_parquet(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """(row number from 1, columns) of each row. Raises ValueError without pyarrow, or without a sound file."""
    try:
        from pyarrow import ArrowException, parquet
    except ImportError as error:
        raise ValueError(f"{path}: reading parquet needs pyarrow: pip install pyarrow") from error
    try:
        rows = parquet.read_table(path).to_pylist()
    except ArrowException as error:
        raise ValueError(f"{path}: not a parquet file, or cut short: download it again") from error
    yield from enumerate(rows, start=1)


def _question(row: dict[str, Any], where: str) -> Question:
    kind, truth, options = row["question_type"], str(row["ground_truth"]), row.get("options") or []
    if kind not in QUESTION_TYPES:
        raise ValueError(f"{where}: unknown question_type {kind!r}; known are {', '.join(QUESTION_TYPES)}")
    if not isinstance(options, list) or not all(isinstance(option, str) for option in options):
        raise ValueError(f'{where}: options must be a list such as ["A. chair", "B. sofa"], or null')
    if kind in MULTIPLE_CHOICE_TYPES:
        if not options:
            raise ValueError(f"{where}: options are missing, {kind} is a multiple choice")
        letters = [option.split(".", 1)[0] for option in options]
        if truth not in letters:
            raise ValueError(f"{where}: ground_truth {truth!r} is none of the options {', '.join(letters)}")
    elif options:
        raise ValueError(f"{where}: {kind} is answered by a number, it has no options")
    elif not _is_number(truth):
        raise ValueError(f"{where}: ground_truth {truth!r} is not a number, as {kind} needs it")
    return Question(str(row["id"]), kind, str(row["question"]), truth, tuple(options))


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False
