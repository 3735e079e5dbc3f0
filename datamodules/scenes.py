"""Scenes and their questions, the unit of data."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from jaxtyping import Int

from zoo.files.fingerprint import fingerprint

MEDIUM_MARK = re.compile("<(?:video|image)>")  # place of a video or an image in the text of a `RawQuestion`

SCAN = re.compile(r"(scene\d{4})_\d{2}")  # a room of ScanNet, and the number of its scan

MediaFiles = str | tuple[str, ...]  # the file of a video, or the files of still images


@dataclass(frozen=True)
class Question:
    """One question about a scene.

    Attributes:
        id: Unique in a source.
        question_type: A question type of the benchmark, or empty for free text, which is not scored.
        question: The text without the options.
        ground_truth: A number, the letter of an option or free text. Empty if unknown (predict).
        options: Options of a multiple-choice question, such as ("A. chair", "B. sofa"). Otherwise empty.
    """

    id: str
    question_type: str
    question: str
    ground_truth: str = ""
    options: tuple[str, ...] = ()


@dataclass(frozen=True)
class RawQuestion(Question):
    """A question whose text is the user's complete text. No options or instruction are added.

    Attributes:
        later_turns: Further questions and answers of the conversation. Each answer is supervised in training.
    """

    later_turns: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Scene:
    """A video, or several still images, with its questions and its optional cameras and depth.

    Attributes:
        name: "<dataset>/<scene_name>", unique in a source.
        video: A video file or a folder of frames. For still images, the first image.
        questions: All questions about the video.
        cameras: File with one camera per raw frame, see `datamodules.cameras_file`.
        depth: Depth of each raw frame, see `datamodules.depth`.
        images: Files of still images, in place of a video.
        is_text: Whether the questions show neither a video nor images. `video` is then the file that holds them.
    """

    name: str
    video: Path
    questions: Sequence[Question]
    cameras: Path | None = None
    depth: Path | None = None
    images: tuple[Path, ...] = ()
    is_text: bool = False


def num_answers(questions: Sequence[Question]) -> Int[np.ndarray, " Q"]:
    """Count the answers of each question. A conversation has one per turn."""
    counted = getattr(questions, "num_answers", None)  # packed questions know their counts without being unpacked
    if counted is not None:
        return counted
    return np.array([1 + len(getattr(question, "later_turns", ())) for question in questions], dtype=np.int64)


def select_questions(scene: Scene, indices: Sequence[int]) -> Scene:
    """Return a scene with some of its questions."""
    select = getattr(scene.questions, "select", None)  # packed questions can be selected without being unpacked
    return replace(scene, questions=select(indices) if select else tuple(scene.questions[i] for i in indices))


def questions_fingerprint(scenes: Iterable[Scene]) -> str:
    """Return a fingerprint of the scenes' names, questions and answers, in order."""

    def texts() -> Iterator[str]:
        for scene in scenes:
            yield scene.name
            packed = getattr(scene.questions, "content_fingerprint", None)  # of packed questions
            yield packed or json.dumps([list(vars(question).values()) for question in scene.questions])

    return fingerprint(texts())


def file_size(scene: Scene) -> int:
    """Return the size of a scene's files in bytes, to notice that others have taken their place.

    Times don't count, because copies on another machine have others. Of a folder the first and the last file count, and
    the number of files, because a video may be a folder of thousands of frames.
    """

    def size(path: Path) -> int:
        if not path.is_dir():
            return path.stat().st_size if path.exists() else 0
        with os.scandir(path) as entries:
            files = sorted((entry for entry in entries if entry.is_file()), key=lambda entry: entry.name)
        return len(files) + sum(file.stat().st_size for file in (*files[:1], *files[1:][-1:]))

    files = (*(scene.images or [scene.video]), scene.cameras, scene.depth)
    return sum(size(path) for path in files if path is not None)


def shared_scenes(tested: Iterable[str], trained: Iterable[str]) -> dict[str, str]:
    """Return the test scenes that are training scenes as far as names tell, each with the training scene's name.

    Datasets of questions name the same scene after different folders, so only the last part of a test scene's name
    counts, and any part of a training scene's. Scans of one ScanNet room are one scene.

    Example:
        >>> shared_scenes(["scannet/scene0011_01", "scannet/scene0015_00"], ["ScanNet/videos/scene0011_00"])
        {'scannet/scene0011_01': 'ScanNet/videos/scene0011_00'}
    """
    known: dict[str, str] = {}
    for name in trained:
        for part in name.split("/"):
            known.setdefault(SCAN.sub(r"\1", part), name)
    own = {name: SCAN.sub(r"\1", name.rpartition("/")[2]) for name in tested}
    return {name: known[part] for name, part in own.items() if part in known}
