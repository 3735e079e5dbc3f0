"""The unit of data: a scene with its questions, never a question with its video."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Question:
    """One question about a scene, worded as VSI-Bench words it."""

    id: str
    question_type: str  # one of zoo.metrics.QUESTION_TYPES
    question: str  # without the options
    ground_truth: str = ""  # "4", "23.5" or an option's letter; empty when unknown (predict)
    options: tuple[str, ...] = ()  # ("A. chair", "B. sofa"); empty for numeric questions


@dataclass(frozen=True)
class Scene:
    """A video, its questions and, where there are some, the file of its cameras and its depth."""

    name: str  # "<dataset>/<scene_name>", unique in a source
    video: Path  # a video file or a folder of frames
    questions: tuple[Question, ...]
    cameras: Path | None = None  # cameras.json: one camera per raw frame of the video
    depth: Path | None = None  # of each raw frame, see `datamodules.depth`
