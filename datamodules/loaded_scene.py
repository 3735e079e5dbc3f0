"""A scene with its frames and geometry, as the dataset reads it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from jaxtyping import UInt8
from torch import Tensor

from datamodules.scenes import MEDIUM_MARK, Question, RawQuestion, Scene, num_answers
from zoo.backbones.base import Message, Preprocessor
from zoo.benchmarks import Benchmark, VSIBench
from zoo.cameras import SceneGeometry
from zoo.cameras.scene_geometry import Window
from zoo.sequences.layout import MediaKind

FramesAs = Literal["video", "image", "labeled_image", "indexed_image"]


class FrameLabels(NamedTuple):
    """Text around each frame that is shown as an image.

    Attributes:
        first: Number of the first frame.
        end: What follows an image.
    """

    first: int
    end: str

    def before(self, number: int) -> str:
        """Return what stands before the image of this number, from 0."""
        return f"Frame-{self.first + number}: "


LABELS = {"labeled_image": FrameLabels(1, "\n"), "indexed_image": FrameLabels(0, "")}  # the latter is VG-LLM's


@dataclass
class LoadedScene:
    """A scene with its frames and geometry, or with the error of reading them.

    Attributes:
        scene: The scene.
        questions: The questions to ask.
        question_types: See `SceneInputs`, as for `draw`.
        frames: The selected and resized frames.
        geometry_frames: The same as the geometry encoder sees them, where it sees others, see `StillResize`.
        tower_window: See `SceneInputs`.
        frame_indices: Their indices among the video's raw frames.
        seconds_per_grid: Real seconds between two temporal patches.
        frame_times: Real seconds of each frame; None for images, or if unknown.
        geometry: Cameras and depth of the frames; None if the scene has none.
        error: Why the scene can't be read; None if it can.
        target_error: Why the depth that the model only learns to predict can't be read: answers do without.
        is_supervised: Whether its answers are learned from.
        geometry_override: See `SceneInputs`, as for `has_true_cameras`.
        num_images: Still images that the frames show, two frames each; 0 for a video.
        labels: Of the images, if they have some.
    """

    scene: Scene
    questions: tuple[Question, ...]
    frames: UInt8[Tensor, "T 3 H W"] | None = None
    frame_indices: tuple[int, ...] = ()
    seconds_per_grid: float = 1.0
    geometry: SceneGeometry | None = None
    error: str | None = None
    target_error: str | None = None
    is_supervised: bool = True
    geometry_override: LoadedScene | Literal["nothing"] | None = None
    frame_times: tuple[float, ...] | None = None
    num_images: int = 0
    labels: FrameLabels | None = None
    has_true_cameras: bool = True
    draw: int = 0
    question_types: tuple[str, ...] = ()
    geometry_frames: UInt8[Tensor, "T 3 _H _W"] | None = None
    tower_window: Window | None = None

    @property
    def kind(self) -> MediaKind:
        """Whether its frames are a video or still images."""
        return "image" if self.num_images else "video"

    @property
    def seen_by_geometry(self) -> UInt8[Tensor, "T 3 _H _W"]:
        """The frames of a scene that could be read, as the geometry encoder sees them."""
        assert self.frames is not None
        return self.frames if self.geometry_frames is None else self.geometry_frames

    @property
    def num_answers(self) -> int:
        """Answers that are learned from."""
        return int(num_answers(self.questions).sum()) if self.is_supervised else 0


# ---- The words of a chat about a scene: the benchmark's question, the marks of its media, the answers ---------------

Content = list[dict[str, str]]  # items of a message
VIDEO: list[Content] = [[{"type": "video"}]]


@dataclass
class Wording:
    """Put questions into the words of a benchmark and the chat of a backbone.

    Args:
        preprocessor: The backbone's preprocessor.
        benchmark: Defines the wording of the questions; None is VSI-Bench.
    """

    preprocessor: Preprocessor
    benchmark: Benchmark | None = None

    def chat(self, question: Question, media: Sequence[Content] = VIDEO, with_answers: bool = False) -> list[str]:
        """The chat about a video or images as texts: a prompt, and with answers also the answer, the next prompt, etc.

        The media, see `media_of`, are where the text of a `RawQuestion` has marks, else they precede it.
        """
        text = user_text(question, self.benchmark)
        is_raw = isinstance(question, RawQuestion)
        before, *after = MEDIUM_MARK.split(text) if is_raw else [text]
        if not after:
            before, after = "", ["" for _ in media[1:]] + [text]
        content = [{"type": "text", "text": before}]
        for medium, part in zip(media, after, strict=True):
            content += [*medium, {"type": "text", "text": part}]
        system = None if self.benchmark is None else self.benchmark.system_prompt
        messages: list[Message] = [] if system is None else [{"role": "system", "content": system}]
        messages.append({"role": "user", "content": [each for each in content if each.get("text") != ""]})
        if with_answers:
            messages.append({"role": "assistant", "content": question.ground_truth})
            for asked, answer in question.later_turns if isinstance(question, RawQuestion) else ():
                messages.append({"role": "user", "content": [{"type": "text", "text": asked}]})
                messages.append({"role": "assistant", "content": answer})
        return self.preprocessor.texts(messages)

    def prompt(self, question: Question) -> str:
        """The text of the chat up to the answer; the video precedes the question."""
        return self.chat(question)[0]

    def refusal(self, question: Question) -> str | None:
        """The error of a question that contains a special token, or None."""
        texts = [user_text(question, self.benchmark), question.ground_truth]
        texts += [text for turn in getattr(question, "later_turns", ()) for text in turn]
        token = self.preprocessor.reserved_token("\n".join(texts))
        return f"question {question.id} holds {token}, a special token of the chat: take it out" if token else None


def media_of(scene: LoadedScene) -> Sequence[Content]:
    """The content of a message for the video, for each image of a scene, or for all frames that are shown as images."""
    images = [{"type": "image"} for _ in range(scene.num_images)]
    if not images:
        return VIDEO
    if scene.scene.images:
        return [[image] for image in images]
    if scene.labels is None:
        return [images]
    shown: Content = []
    for number, image in enumerate(images):
        shown += [{"type": "text", "text": scene.labels.before(number)}, image]
        shown += [{"type": "text", "text": scene.labels.end}] if scene.labels.end else []
    return [shown]


def user_text(question: Question, benchmark: Benchmark | None = None) -> str:
    """Return the user's text after the video; a `RawQuestion` keeps its text unchanged.

    Args:
        question: The question.
        benchmark: Defines the wording; None is VSI-Bench.
    """
    if isinstance(question, RawQuestion):
        return question.question
    benchmark = benchmark or VSIBench()
    return benchmark.user_text(question.question, question.options, prefix=benchmark.prefix)
