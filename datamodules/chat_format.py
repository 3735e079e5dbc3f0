"""The chat about a scene: the benchmark's wording of a question, the placeholders of images and videos, the answers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from datamodules.scenes import MEDIUM_MARK, Question, RawQuestion
from zoo.backbones.base import Message, Preprocessor
from zoo.benchmarks import Benchmark, VSIBench
from zoo.cameras.poses import invert_se3
from zoo.cameras.scene_geometry import PatchCameras
from zoo.errors import InputError
from zoo.sequences.loaded_scene import FrameLabels, LoadedScene

FramesAs = Literal["video", "image", "labeled_image", "indexed_image"]
LABELS = {"labeled_image": FrameLabels(1, "\n"), "indexed_image": FrameLabels(0, "")}  # VG-LLM uses indexed_image
Content = list[dict[str, str]]  # the items of a chat message
STRAIGHT = 1e-3  # cosine of the pitch; below it, yaw and roll turn about one axis
VIDEO: list[Content] = [[{"type": "video"}]]


@dataclass
class ChatFormat:
    """Word questions as a benchmark does, and format them with the chat template of a backbone.

    Args:
        preprocessor: The backbone's preprocessor.
        benchmark: Defines the wording of the questions. None uses VSI-Bench.
    """

    preprocessor: Preprocessor
    benchmark: Benchmark | None = None

    def chat(self, question: Question, media: Sequence[Content] = VIDEO, with_answers: bool = False) -> list[str]:
        """Return the chat as texts: the prompt and, if `with_answers`, the answer, the next prompt and so on.

        The media (see `media_of`) replace the marks in the text of a `RawQuestion`. Without marks they precede the
        text.
        """
        text = user_text(question, self.benchmark)
        media = media or [[]]  # text alone
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
        """Return the text of the chat up to the answer. The video precedes the question."""
        return self.chat(question)[0]

    def check(self, question: Question) -> None:
        """Raise an InputError if a question contains a special token."""
        texts = [user_text(question, self.benchmark), question.ground_truth]
        texts += [text for turn in getattr(question, "later_turns", ()) for text in turn]
        token = self.preprocessor.reserved_token("\n".join(texts))
        if token:
            raise InputError(f"question {question.id} holds {token}, a special token of the chat: take it out")


def media_of(scene: LoadedScene, cameras: PatchCameras | None = None) -> Sequence[Content]:
    """Return the message content of each medium: the video, each still image, or all frames shown as images.

    Args:
        scene: The scene.
        cameras: One camera per temporal patch, to be written behind the last medium. None writes none.
    """
    media = _shown_media(scene)
    if cameras is None:
        return media
    return [*media[:-1], [*media[-1], {"type": "text", "text": f"{poses_text(cameras)}\n"}]]


def _shown_media(scene: LoadedScene) -> Sequence[Content]:
    if scene.kind == "video":
        return VIDEO
    images = [{"type": "image"} for _ in range(scene.num_images)]
    if not scene.is_one_medium:
        return [[image] for image in images]
    if scene.labels is None:
        return [images]
    shown: Content = []
    for number, image in enumerate(images):
        shown += [{"type": "text", "text": scene.labels.before(number)}, image]
        shown += [{"type": "text", "text": scene.labels.end}] if scene.labels.end else []
    return [shown]


def poses_text(cameras: PatchCameras) -> str:
    """Write the poses and the horizontal field of view of a scene's temporal patches, one line each.

    Poses are relative to the first view with a camera, so that a change of world changes nothing. The principal point
    is left out. Angles are those of R = R_y(yaw) R_x(pitch) R_z(roll), which maps a view's axes to the first view's.

    Args:
        cameras: One camera per temporal patch, some of them valid.

    Example:
        >>> import torch
        >>> poses = torch.eye(4).repeat(3, 1, 1)
        >>> poses[1, :3, 3] = torch.tensor([-0.5, 0.25, -2.0])  # to the right, up and ahead of the first view
        >>> K_normalized = torch.diag(torch.tensor([0.5, 0.5, 1.0])).repeat(3, 1, 1)
        >>> print(poses_text(PatchCameras(poses, K_normalized, torch.tensor([True, True, False]))))
        Cameras relative to view 1: right, up, forward (meters); yaw right, pitch up, roll clockwise (degrees).
        Horizontal field of view: 90 degrees.
        View 1: 0.00, 0.00, 0.00; 0, 0, 0
        View 2: 0.50, 0.25, 2.00; 0, 0, 0
        View 3: unknown
    """
    poses, K, known = (each.cpu() for each in cameras[:3])
    first = int(known.int().argmax())
    to_first = poses[first].double() @ invert_se3(poses.double())
    fields = [_degrees(2 * math.atan(0.5 / fx)) for fx in K[:, 0, 0].tolist()]
    shares_field = len({field for field, has_camera in zip(fields, known, strict=True) if has_camera}) == 1
    lines = []
    for number, (pose, field, has_camera) in enumerate(zip(to_first.tolist(), fields, known, strict=True), 1):
        right, down, forward, _ = (row[3] for row in pose)
        place = ", ".join(f"{round(length, 2) + 0.0:.2f}" for length in (right, -down, forward))  # no -0.00
        angles = ", ".join(str(_degrees(angle)) for angle in _yaw_pitch_roll(pose))
        known_text = f"{place}; {angles}" + ("" if shares_field else f"; {field}")
        lines.append(f"View {number}: {known_text if has_camera else 'unknown'}")
    numbers = "right, up, forward (meters); yaw right, pitch up, roll clockwise (degrees)"
    of_all = f".\nHorizontal field of view: {fields[first]} degrees." if shares_field else "; horizontal field of view."
    return "\n".join([f"Cameras relative to view {first + 1}: {numbers}{of_all}", *lines])


def _yaw_pitch_roll(R: Sequence[Sequence[float]]) -> tuple[float, float, float]:
    """Return the angles of R = R_y(yaw) R_x(pitch) R_z(roll). Straight up or down, the roll is 0."""
    cosine = math.hypot(R[0][2], R[2][2])
    pitch = math.atan2(-R[1][2], cosine)
    if cosine < STRAIGHT:
        return math.atan2(-R[2][0], R[0][0]), pitch, 0.0
    return math.atan2(R[0][2], R[2][2]), pitch, math.atan2(R[1][0], R[1][1])


def _degrees(angle: float) -> int:
    """Return whole degrees in -179 ... 180."""
    degrees = round(math.degrees(angle))
    return 180 if degrees == -180 else degrees


def user_text(question: Question, benchmark: Benchmark | None = None) -> str:
    """Return the user's text after the video. A `RawQuestion` keeps its text unchanged.

    Args:
        question: The question.
        benchmark: Defines the wording. None uses VSI-Bench.
    """
    if isinstance(question, RawQuestion):
        return question.question
    benchmark = benchmark or VSIBench()
    return benchmark.user_text(question.question, question.options, prefix=benchmark.prefix)
