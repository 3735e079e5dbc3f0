"""A tiny random Qwen3-VL, see `zoo.backbones.tiny`."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from transformers import (
    Qwen2VLImageProcessor,
    Qwen3VLForConditionalGeneration,
    Qwen3VLProcessor,
    Qwen3VLVideoProcessor,
)

from zoo.backbones.qwen3_vl.backbone import Qwen3VLBackbone, Qwen3VLPreprocessor
from zoo.backbones.tiny import TinyQwenVL, tiny_tokenizer

CHAT_TEMPLATE = Path(__file__).parent / "tiny_chat_template.jinja"
HALF = [0.5, 0.5, 0.5]  # mean and deviation of the released processors


@cache
def tiny_processor(chat_template: Path = CHAT_TEMPLATE) -> Qwen3VLProcessor:
    """Return Qwen3-VL's processor with the tiny tokenizer; its chats read as with the released template."""
    return Qwen3VLProcessor(
        image_processor=Qwen2VLImageProcessor(patch_size=16, image_mean=HALF, image_std=HALF),
        video_processor=Qwen3VLVideoProcessor(image_mean=HALF, image_std=HALF),
        tokenizer=tiny_tokenizer(),
        chat_template=chat_template.read_text().rstrip("\n"),
    )


def tiny_preprocessor() -> Qwen3VLPreprocessor:
    """Return the tiny processor behind the zoo's interface."""
    return Qwen3VLPreprocessor(tiny_processor())


class TinyQwen3VL(TinyQwenVL):
    """Random weights, see `TinyQwenVL`; DeepStack takes the features of each layer of the vision tower."""

    stock_class, backbone_class = Qwen3VLForConditionalGeneration, Qwen3VLBackbone

    def own_settings(
        self, pairs: int, text: Mapping[str, Any], vision_layers: int
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        # near the released models' split of a head, 3/8 time, 5/16 height, 5/16 width, in multiples of four
        rope = dict(
            rope_type="default",
            rope_theta=5e6,
            mrope_section=[pairs // 2, pairs // 4, pairs // 4],
            mrope_interleaved=True,
        )
        own = dict(rope_parameters=rope, head_dim=2 * pairs)
        return own, dict(num_position_embeddings=64, deepstack_visual_indexes=list(range(vision_layers)))

    def processor(self) -> Qwen3VLProcessor:
        return tiny_processor()
