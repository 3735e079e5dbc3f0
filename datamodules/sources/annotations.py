"""Annotation files in VSI-Bench's format and their folder layout.

    <root>/<name>.jsonl                         one question per line; or <name>.parquet, one question per row
    <root>/<dataset>/<scene_name>.mp4           or .mov, .avi, .mkv, .webm, or a folder of frames of that name
    <root>/<dataset>/<scene_name>.cameras.json  optional: one camera per raw frame
    <root>/<dataset>/<scene_name>.depth/        optional: one depth image per raw frame, see `datamodules.depth`

The fields of a question are id, dataset, scene_name, question_type, question, ground_truth and options: a list, or
null for numeric questions.
"""

from __future__ import annotations

import math
import os.path
from collections.abc import Callable, Container
from pathlib import Path
from typing import Any

from datamodules.cameras_file import read_rows
from datamodules.depth import find_depth
from datamodules.scenes import Question, Scene
from datamodules.sources.base import Missing, by_type
from datamodules.video import VIDEO_SUFFIXES, companion_name
from zoo.benchmarks import Benchmark, VSIBench

Row = dict[str, Any]
REQUIRED = ("id", "dataset", "scene_name", "question_type", "question", "ground_truth")


def read_questions(
    path: str | Path, benchmark: Benchmark | None = None, convert: Callable[[Row], Row] = dict
) -> dict[str, list[Question]]:
    """Read the questions of each "<dataset>/<scene_name>"; scenes and questions keep the order of the file.

    Args:
        path: See `datamodules.cameras_file.read_rows`.
        benchmark: Defines the question types; None is VSI-Bench.
        convert: Gives a row of another format these fields; its ValueError is raised with file and line.

    Raises:
        ValueError: Invalid JSON, a missing field, an unknown question type, a repeated id, a name that leaves its
            folder, options that don't match the type or the ground truth (each with file and line), or a file without
            questions.
        FileNotFoundError: The file is absent.
    """
    path = Path(path)
    scenes: dict[str, list[Question]] = {}
    line_of_id: dict[str, int] = {}
    for number, row in read_rows(path):
        where = f"{path}:{number}"
        try:
            row = convert(row)
            question = _question(row, benchmark or VSIBench())
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from error
        if question.id in line_of_id:
            raise ValueError(f"{where}: id {question.id} repeats line {line_of_id[question.id]}: ids must be unique")
        line_of_id[question.id] = number
        name = f"{row['dataset']}/{row['scene_name']}"
        if {"", ".", ".."} & set(name.split("/")):  # files are read, and caches written, at this path
            raise ValueError(f"{where}: {name} leaves its folder: name a scene without .. and without an empty part")
        scenes.setdefault(name, []).append(question)
    if not scenes:
        raise ValueError(f"{path}: no questions in this file: a split needs at least one")
    return scenes


def read_layout(
    root: str | Path,
    annotations: str | Path,
    left_out: Container[str] = (),
    benchmark: Benchmark | None = None,
    convert: Callable[[Row], Row] = dict,
) -> tuple[list[Scene], Missing]:
    """List the scenes of an annotation file.

    Args:
        root: Folder of the videos.
        annotations: A file name in `root`, or an absolute path.
        left_out: Ids of questions to ignore; a scene without other questions is ignored as well.
        benchmark: Defines the question types; None is VSI-Bench.
        convert: See `read_questions`.

    Returns:
        The scenes in the order of the file, and the scenes whose video is missing.

    Raises:
        ValueError: See `read_questions`.
        FileNotFoundError: The annotation file is absent.
    """
    root = Path(root)
    scenes: list[Scene] = []
    missing: Missing = {}
    for name, asked in read_questions(root / annotations, benchmark, convert).items():
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
    """Return the video file of the scene "<dataset>/<scene_name>", else its folder of frames, else None."""
    candidates = [root / f"{name}{each}" for suffix in VIDEO_SUFFIXES for each in (suffix, suffix.upper())]
    if video := next(filter(os.path.isfile, candidates), None):  # Path.is_file raises for names that are too long
        return video
    return root / name if os.path.isdir(root / name) else None


def find_cameras(video: Path) -> Path | None:
    """Return the cameras file beside a video file or a folder of frames, or None."""
    cameras = video.with_name(f"{companion_name(video)}.cameras.json")
    return cameras if cameras.is_file() else None


def _question(row: Row, benchmark: Benchmark) -> Question:
    if wrong := [field for field in REQUIRED if not isinstance(row.get(field), (str, int, float))]:
        raise ValueError(f"missing or no text: {', '.join(wrong)}; a question has {', '.join(REQUIRED)}")
    kind, truth, options = str(row["question_type"]), str(row["ground_truth"]), row.get("options") or []
    benchmark.check_question_type(kind)
    if not isinstance(options, list) or not all(isinstance(option, str) for option in options):
        raise ValueError('options must be a list such as ["A. chair", "B. sofa"], or null')
    if kind in benchmark.multiple_choice_types:
        if not options:
            raise ValueError(f"options are missing, {kind} is multiple choice")
        letters = [option.split(".", 1)[0] for option in options]
        if truth not in letters:
            raise ValueError(f"ground_truth {truth!r} is none of the options {', '.join(letters)}")
    elif options:
        raise ValueError(f"{kind} is numeric: options must be null")
    elif kind in benchmark.numeric_types and not is_finite_number(truth):
        raise ValueError(f"ground_truth {truth!r} is not a number, which {kind} requires")
    return Question(str(row["id"]), kind, str(row["question"]), truth, tuple(options))


def is_finite_number(text: str) -> bool:
    """Whether a text is a finite number."""
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False
