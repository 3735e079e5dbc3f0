"""A tiny random Qwen2.5-VL, see `zoo.backbones.tiny`."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from transformers import (
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLProcessor,
    Qwen2VLImageProcessor,
    Qwen2VLVideoProcessor,
)

from zoo.backbones.qwen25_vl.backbone import Qwen25VLBackbone
from zoo.backbones.qwen_preprocessor import QwenVLPreprocessor
from zoo.backbones.tiny import TinyQwenVL, tiny_tokenizer

CHAT_TEMPLATE = Path(__file__).parent / "tiny_chat_template.jinja"


@cache
def tiny_processor() -> Qwen2_5_VLProcessor:
    """Return Qwen2.5-VL's processor with the tiny tokenizer; its chats read as with the released template."""
    return Qwen2_5_VLProcessor(
        image_processor=Qwen2VLImageProcessor(),
        video_processor=Qwen2VLVideoProcessor(),
        tokenizer=tiny_tokenizer(),
        chat_template=CHAT_TEMPLATE.read_text().rstrip("\n"),
    )


def tiny_preprocessor() -> QwenVLPreprocessor:
    """Return the tiny processor behind the zoo's interface."""
    return QwenVLPreprocessor(tiny_processor())


class TinyQwen25VL(TinyQwenVL):
    """Random weights, see `TinyQwenVL`; the last layer of the vision tower attends to the frame, others to windows."""

    stock_class, backbone_class = Qwen2_5_VLForConditionalGeneration, Qwen25VLBackbone

    def own_settings(
        self, pairs: int, text: Mapping[str, Any], vision_layers: int
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        # the released models' split of a head: 2/8 time, 3/8 height, 3/8 width
        sections = [pairs // 4, pairs * 3 // 8, pairs * 3 // 8]
        rope = dict(rope_type="default", rope_theta=1e6, mrope_section=sections)
        return dict(rope_parameters=rope), dict(tokens_per_second=2, fullatt_block_indexes=[vision_layers - 1])

    def processor(self) -> Qwen2_5_VLProcessor:
        return tiny_processor()
