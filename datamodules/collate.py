"""Turns scenes and their questions into one batch.

A batch is a dict of
    input_ids, attention_mask, labels (N, L): one question per row; labels are -100 except on the answer;
    scene_index (N,): the scene of each row;
    scenes: one `SceneInputs` per scene;
    records: one prediction record per row, without the prediction yet;
    failed: complete records of unreadable scenes' questions, and of questions with special tokens;
    questions_per_batch: number of questions answered at once;
    tokens_per_sequence: most tokens of a training sequence with several questions, or None;
    pack_scenes: whether training sequences have several scenes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import torch
from jaxtyping import UInt8
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from datamodules.scenes import MEDIUM, Question, RawQuestion, Scene
from zoo.backbones.preprocessor import Message, Preprocessor, TokenizedPrompt
from zoo.benchmarks import Benchmark, VSIBench
from zoo.geometry.base import SceneGeometry
from zoo.scenes import SceneInputs
from zoo.sequences.packing import IGNORED
from zoo.sequences.time_index import Seconds
from zoo.sequences.visual_grid import ExtraTokens

FramesAs = Literal["video", "image", "labeled_image"]
Content = list[dict[str, str]]  # items of a message
VIDEO: list[Content] = [[{"type": "video"}]]


@dataclass
class LoadedScene:
    """A scene with its frames and geometry, or with the error of reading them.

    Attributes:
        scene: The scene.
        questions: The questions to ask.
        frames: The selected and resized frames.
        frame_indices: Their indices among the video's raw frames.
        seconds_per_grid: Real seconds between two temporal patches.
        frame_times: Real seconds of each frame; None for images, or if unknown.
        geometry: Cameras and depth of the frames; None if the scene has none.
        error: Why the scene can't be read; None if it can.
        is_supervised: Whether its answers are learned from.
        geometry_of: See `SceneInputs`, as for `has_true_cameras`.
        num_images: Still images that the frames show, two frames each; 0 for a video.
        has_labels: Whether each image has its number as a label.
    """

    scene: Scene
    questions: tuple[Question, ...]
    frames: UInt8[Tensor, "T 3 H W"] | None = None
    frame_indices: tuple[int, ...] = ()
    seconds_per_grid: float = 1.0
    geometry: SceneGeometry | None = None
    error: str | None = None
    is_supervised: bool = True
    geometry_of: LoadedScene | Literal["nothing"] | None = None
    frame_times: tuple[float, ...] | None = None
    num_images: int = 0
    has_labels: bool = False
    has_true_cameras: bool = True


@dataclass
class Collate:
    """Turns loaded scenes into a batch.

    Args:
        preprocessor: The backbone's preprocessor.
        training: Append the answers with labels and pad on the right; otherwise pad on the left, for generation.
        questions_per_batch: Questions answered at once, for the model.
        extra_tokens: Tokens after the 2D tokens of each view, with placeholders of their own.
        keep_frames: Include the frames, for a geometry encoder.
        seconds: Whose seconds per temporal patch the model uses; nominal ones are its own.
        benchmark: Defines the wording of the questions; None is VSI-Bench.
        tokens_per_sequence: Most tokens of a training sequence with several questions, for the model.
        pack_scenes: Whether training sequences have several scenes, for the model.
    """

    preprocessor: Preprocessor
    training: bool
    questions_per_batch: int = 8
    extra_tokens: ExtraTokens = ExtraTokens.NOTHING
    keep_frames: bool = False
    seconds: Seconds = "nominal"
    benchmark: Benchmark | None = None
    tokens_per_sequence: int | None = None
    pack_scenes: bool = False

    def __call__(self, loaded: list[LoadedScene]) -> dict[str, Any]:
        # 1. Separate the scenes and questions with an error.
        failed, sound = [], []
        for scene in loaded:
            errors = [scene.error or self._refusal(q) for q in scene.questions]
            both = list(zip(scene.questions, errors, strict=True))
            failed += [{**record(scene, q, ""), "error": error, "prediction": ""} for q, error in both if error]
            asked = tuple(q for q, error in both if not error)
            if scene.error is None and (asked or not both):
                sound.append(replace(scene, questions=asked))
        batch: dict[str, Any] = {
            "failed": failed,
            "questions_per_batch": self.questions_per_batch,
            "tokens_per_sequence": self.tokens_per_sequence,
            "pack_scenes": self.pack_scenes,
            "scenes": [self.scene_inputs(scene) for scene in sound],
        }
        if not sound:
            return {**batch, "records": [], "input_ids": torch.empty(0, 0, dtype=torch.long)}
        # 2. One row per question.
        rows = [(i, scene, question) for i, scene in enumerate(sound) for question in scene.questions]
        chats = [self.chat(question, media_of(scene), self.training) for _, scene, question in rows]
        grids = [scene.media_grids.tolist() for scene in batch["scenes"]]
        sequences = [
            self.preprocessor.tokenize(chat, grids[i], self.extra_tokens, scene.frame_times)
            for chat, (i, scene, _) in zip(chats, rows, strict=True)
        ]
        for (_, labels), (_, scene, _) in zip(sequences, rows, strict=True):
            if not scene.is_supervised:
                labels.fill_(IGNORED)
        return {
            **batch,
            **self._pad(sequences),
            "scene_index": torch.tensor([i for i, _, _ in rows]),
            "records": [record(scene, q, chat[0]) for chat, (_, scene, q) in zip(chats, rows, strict=True)],
        }

    def scene_inputs(self, loaded: LoadedScene) -> SceneInputs:
        """The model's inputs of a loaded scene."""
        assert loaded.frames is not None
        pixel_values, grid_thw = self.preprocessor.cut_patches(loaded.frames)
        other = loaded.geometry_of
        return SceneInputs(
            pixel_values,
            grid_thw,
            kind="image" if loaded.num_images else "video",
            frames=loaded.frames if self.keep_frames else None,
            geometry=loaded.geometry,
            frame_indices=loaded.frame_indices,
            seconds_per_grid=None if self.seconds == "nominal" else loaded.seconds_per_grid,
            geometry_of=self.scene_inputs(other) if isinstance(other, LoadedScene) else other,
            question_types=tuple(question.question_type for question in loaded.questions),
            has_true_cameras=loaded.has_true_cameras,
        )

    def chat(self, question: Question, media: Sequence[Content] = VIDEO, with_answers: bool = False) -> list[str]:
        """The chat about a video or images as texts: a prompt, and with answers also the answer, the next prompt, etc.

        The media, see `media_of`, are where the text of a `RawQuestion` has marks, else they precede it.
        """
        text = user_text(question, self.benchmark)
        is_raw = isinstance(question, RawQuestion)
        before, *after = MEDIUM.split(text) if is_raw else [text]
        if not after:
            before, after = "", ["" for _ in media[1:]] + [text]
        content = [{"type": "text", "text": before}]
        for medium, part in zip(media, after, strict=True):
            content += [*medium, {"type": "text", "text": part}]
        messages: list[Message] = [{"role": "user", "content": [each for each in content if each.get("text") != ""]}]
        if with_answers:
            messages.append({"role": "assistant", "content": question.ground_truth})
            for asked, answer in question.later_turns if isinstance(question, RawQuestion) else ():
                messages.append({"role": "user", "content": [{"type": "text", "text": asked}]})
                messages.append({"role": "assistant", "content": answer})
        return self.preprocessor.texts(messages)

    def prompt(self, question: Question) -> str:
        """The text of the chat up to the answer; the video precedes the question."""
        return self.chat(question)[0]

    def _refusal(self, question: Question) -> str | None:
        """The error of a question that contains a special token, or None."""
        texts = [user_text(question, self.benchmark), question.ground_truth]
        texts += [text for turn in getattr(question, "later_turns", ()) for text in turn]
        token = self.preprocessor.reserved_token("\n".join(texts))
        return f"question {question.id} holds {token}, a special token of the chat: take it out" if token else None

    def _pad(self, sequences: list[TokenizedPrompt]) -> dict[str, Tensor]:
        pad = partial(pad_sequence, batch_first=True, padding_side="right" if self.training else "left")
        ids, labels = (list(column) for column in zip(*sequences, strict=True))
        return {
            "input_ids": pad(ids, padding_value=self.preprocessor.pad_token_id),
            "labels": pad(labels, padding_value=IGNORED),
            "attention_mask": pad([torch.ones_like(each) for each in ids], padding_value=0),
        }


def media_of(scene: LoadedScene) -> Sequence[Content]:
    """The content of a message for the video, for each image of a scene, or for all frames that are shown as images."""
    images = [{"type": "image"} for _ in range(scene.num_images)]
    if not images:
        return VIDEO
    if scene.scene.images:
        return [[image] for image in images]
    if not scene.has_labels:
        return [images]
    labels = ({"type": "text", "text": f"Frame-{number}: "} for number in range(1, len(images) + 1))
    end = {"type": "text", "text": "\n"}
    return [[each for label, image in zip(labels, images, strict=True) for each in (label, image, end)]]


def record(scene: LoadedScene, question: Question, prompt: str) -> dict[str, Any]:
    """The record of a question, without its prediction and score."""
    return {
        "id": question.id,
        "scene": scene.scene.name,
        "question_type": question.question_type,
        "question": question.question,
        "prompt": prompt,
        "ground_truth": question.ground_truth,
        "frames": list(scene.frame_indices),
        "error": scene.error,
    }


def user_text(question: Question, benchmark: Benchmark | None = None) -> str:
    """Returns the user's text after the video; a `RawQuestion` keeps its text unchanged.

    Args:
        question: The question.
        benchmark: Defines the wording; None is VSI-Bench.
    """
    if isinstance(question, RawQuestion):
        return question.question
    benchmark = benchmark or VSIBench()
    return benchmark.user_text(question.question, question.options, prefix=benchmark.prefix)
