"""The chat about a scene: the benchmark's wording of a question, the placeholders of images and videos, the answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from datamodules.scenes import MEDIUM_MARK, Question, RawQuestion
from zoo.backbones.base import Message, Preprocessor
from zoo.benchmarks import Benchmark, VSIBench
from zoo.sequences.loaded_scene import FrameLabels, LoadedScene

FramesAs = Literal["video", "image", "labeled_image", "indexed_image"]
LABELS = {"labeled_image": FrameLabels(1, "\n"), "indexed_image": FrameLabels(0, "")}  # VG-LLM uses indexed_image
Content = list[dict[str, str]]  # the items of a chat message
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

    def refusal(self, question: Question) -> str | None:
        """Return an error message if a question contains a special token, else None."""
        texts = [user_text(question, self.benchmark), question.ground_truth]
        texts += [text for turn in getattr(question, "later_turns", ()) for text in turn]
        token = self.preprocessor.reserved_token("\n".join(texts))
        return f"question {question.id} holds {token}, a special token of the chat: take it out" if token else None


def media_of(scene: LoadedScene) -> Sequence[Content]:
    """Return the message content of each medium: the video, each still image, or all frames shown as images."""
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
