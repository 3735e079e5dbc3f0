"""Frames and text to Qwen3-VL's inputs: the time of each temporal patch is text before its visual tokens."""

from __future__ import annotations

from collections.abc import Sequence

from zoo.backbones.preprocessor import QwenVLPreprocessor
from zoo.errors import InputError
from zoo.visual_grid import TEMPORAL_PATCH_SIZE

VIDEO = "<|vision_start|><|video_pad|><|vision_end|>"  # the chat template's


class Qwen3VLPreprocessor(QwenVLPreprocessor):
    """See `Preprocessor`."""

    def place_media(
        self, texts: Sequence[str], media_grids: Sequence[Sequence[int]], frame_times: Sequence[float] | None
    ) -> tuple[Sequence[str], Sequence[Sequence[int]]]:
        """Replace the video of a chat by a block `<1.5 seconds><|vision_start|>...<|vision_end|>` per temporal patch.

        The time is the mean of the patch's first and last frame. The blocks replace the template's markers as well, as
        in transformers 4.57, with which the model was released; 5.24's processor leaves a second pair around them.
        """
        if not any(VIDEO in text for text in texts):
            return super().place_media(texts, media_grids, frame_times)
        ((steps, height, width),) = media_grids
        if frame_times is None or len(frame_times) != steps * TEMPORAL_PATCH_SIZE:
            raise InputError(
                "Qwen3-VL writes the time of the frames into the prompt, and these have none: give a video file, a "
                'folder whose cameras.json has "times_s", or times_s with frames in memory'
            )
        first, last = frame_times[::TEMPORAL_PATCH_SIZE], frame_times[TEMPORAL_PATCH_SIZE - 1 :: TEMPORAL_PATCH_SIZE]
        blocks = "".join(f"<{(a + b) / 2:.1f} seconds>{VIDEO}" for a, b in zip(first, last, strict=True))
        return [text.replace(VIDEO, blocks) for text in texts], [(1, height, width)] * steps

    def save_pretrained(self, folder: str) -> None:
        super().save_pretrained(folder)
        self.processor.video_processor.save_pretrained(folder)  # where transformers 4.57 looks
