"""Frames and text to Qwen3.5's inputs: as in Qwen3-VL, with an empty block of thoughts before each answer."""

from __future__ import annotations

from collections.abc import Sequence

from zoo.backbones.qwen3_vl.preprocessor import Qwen3VLPreprocessor

NO_THOUGHTS = "<think>\n\n</think>\n\n"


class Qwen35Preprocessor(Qwen3VLPreprocessor):
    """See `Preprocessor`; without thinking, at any size of the model."""

    title = "Qwen3.5"
    template_options = {"enable_thinking": False}

    def history(self, texts: Sequence[str]) -> str:
        """The chat template leaves the thoughts of earlier answers out."""
        return super().history(texts).replace(NO_THOUGHTS, "")
