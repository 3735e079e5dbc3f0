"""Frames and text to Qwen3-VL's inputs: the time of each temporal patch is text before its visual tokens."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import islice
from typing import ClassVar

from zoo.backbones.qwen_preprocessor import QwenVLPreprocessor
from zoo.errors import InputError
from zoo.sequences.visual_grid import TEMPORAL_PATCH_SIZE

VIDEO = "<|vision_start|><|video_pad|><|vision_end|>"  # the chat template's
MEDIUM = re.compile(r"<\|vision_start\|><\|(?:video|image)_pad\|><\|vision_end\|>")


class Qwen3VLPreprocessor(QwenVLPreprocessor):
    """See `Preprocessor`.

    Attributes:
        title: The name of the model, for errors.
    """

    title: ClassVar[str] = "Qwen3-VL"

    def place_media(
        self, texts: Sequence[str], media_grids: Sequence[Sequence[int]], frame_times: Sequence[float] | None
    ) -> tuple[Sequence[str], Sequence[Sequence[int]]]:
        """Replace each video of a chat by a block `<1.5 seconds><|vision_start|>...<|vision_end|>` per temporal patch.

        The time is the mean of the patch's first and last frame. The blocks replace the template's markers as well, as
        in transformers 4.57, with which the model was released; 5.24's processor leaves a second pair around them.
        """
        grids, times = iter(media_grids), iter(frame_times or ())
        placed: list[Sequence[int]] = []

        def place(mark: re.Match[str]) -> str:
            steps, height, width = next(grids)
            placed.extend([(1, height, width)] * steps)
            if mark.group() != VIDEO:
                return mark.group()
            found = list(islice(times, steps * TEMPORAL_PATCH_SIZE))
            if len(found) < steps * TEMPORAL_PATCH_SIZE:
                raise InputError(
                    f"{self.title} writes the time of the frames into the prompt, and these have none: give a video "
                    'file, a folder whose cameras.json has "times_s", or times_s with frames in memory'
                )
            first, last = found[::TEMPORAL_PATCH_SIZE], found[TEMPORAL_PATCH_SIZE - 1 :: TEMPORAL_PATCH_SIZE]
            return "".join(f"<{(a + b) / 2:.1f} seconds>{VIDEO}" for a, b in zip(first, last, strict=True))

        return [MEDIUM.sub(place, text) for text in texts], placed

    def save_pretrained(self, folder: str) -> None:
        super().save_pretrained(folder)
        self.processor.video_processor.save_pretrained(folder)  # where transformers 4.57 looks
