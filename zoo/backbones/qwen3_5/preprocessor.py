"""Frames and text to Qwen3.5's inputs: as in Qwen3-VL, with an empty block of thoughts before each answer."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain

from zoo.backbones.preprocessor import Message
from zoo.backbones.qwen3_vl.preprocessor import Qwen3VLPreprocessor

NO_THOUGHTS = "<think>\n\n</think>\n\n"


class Qwen35Preprocessor(Qwen3VLPreprocessor):
    """See `Preprocessor`; without thinking, at any size of the model."""

    title = "Qwen3.5"
    template_options = {"enable_thinking": False}

    def texts(self, messages: Sequence[Message]) -> list[str]:
        """See `Preprocessor`; answers are trimmed, as by the chat template."""
        return super().texts(
            [each | {"content": each["content"].strip()} if each["role"] == "assistant" else each for each in messages]
        )

    def history(self, texts: Sequence[str]) -> str:
        """The chat template leaves the thoughts of earlier answers out."""
        prompts = [text.removesuffix(NO_THOUGHTS) for text in texts[::2]]
        answers = [text.rpartition("</think>")[2].lstrip("\n") for text in texts[1::2]]
        return "".join(chain.from_iterable(zip(prompts, answers, strict=True)))
