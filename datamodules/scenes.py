"""The unit of data: a scene with its questions."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Question:
    """One question about a scene.

    Attributes:
        id: Unique in a source.
        question_type: A question type of the benchmark, or empty for free text, which has no score.
        question: The text without the options.
        ground_truth: A number, an option's letter or free text; empty if unknown (predict).
        options: Such as ("A. chair", "B. sofa"); empty unless multiple choice.
    """

    id: str
    question_type: str
    question: str
    ground_truth: str = ""
    options: tuple[str, ...] = ()


@dataclass(frozen=True)
class RawQuestion(Question):
    """A question whose text is the user's whole text after the video: no options or instruction are added."""


@dataclass(frozen=True)
class Scene:
    """A video with its questions and its optional cameras and depth.

    Attributes:
        name: "<dataset>/<scene_name>", unique in a source.
        video: A video file or a folder of frames.
        questions: All questions about the video.
        cameras: File with one camera per raw frame, see `datamodules.cameras_file`.
        depth: Depth of each raw frame, see `datamodules.depth`.
    """

    name: str
    video: Path
    questions: tuple[Question, ...]
    cameras: Path | None = None
    depth: Path | None = None
