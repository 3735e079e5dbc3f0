"""Qwen2.5-VL (arXiv 2502.13923). Released folders are read by `zoo.backbones.pretrained`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from transformers import (
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLProcessor,
    Qwen2VLImageProcessor,
    Qwen2VLVideoProcessor,
)
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import (
    Qwen2_5_VisionPatchEmbed,
    Qwen2_5_VLAttention,
    Qwen2_5_VLDecoderLayer,
    Qwen2_5_VLVisionAttention,
)
from transformers.vision_utils import get_vision_cu_seqlens, get_vision_position_ids, get_vision_window_index

from zoo.backbones.decoder import CameraAttention, FusionLayer
from zoo.backbones.qwen_vl import QwenVLBackbone, QwenVLPreprocessor, TinyQwenVL, tiny_tokenizer
from zoo.backbones.vision import PatchEmbedding, SegmentAttention
from zoo.sequences.loaded_scene import Grid, Segments, VisionInputs, VisionRules

# ---- The vision encoder's inputs that depend on grids alone, by transformers' own functions --------------------------


@dataclass(frozen=True)
class Qwen25VisionRules(VisionRules):
    """Positions, frames and windows of the patches.

    Attributes:
        spatial_merge_size: Patches per side in one visual token.
        window_size: Side of a window in pixels.
        patch_size: Side of a patch in pixels.
    """

    spatial_merge_size: int
    window_size: int
    patch_size: int

    @classmethod
    def of(cls, config: Any) -> Qwen25VisionRules:
        """Read the values from a vision config."""
        return cls(config.spatial_merge_size, config.window_size, config.patch_size)

    def inputs(self, grids: Sequence[Grid]) -> VisionInputs:
        grid_thw = torch.tensor(grids)
        window_index, window_boundaries = get_vision_window_index(
            grid_thw, self.spatial_merge_size, self.window_size, self.patch_size
        )
        frames, windows = Segments(get_vision_cu_seqlens(grid_thw)), Segments(window_boundaries)
        return VisionInputs(
            [t * h * w // self.spatial_merge_size**2 for t, h, w in grids],
            {
                "position_ids": get_vision_position_ids(grid_thw, self.spatial_merge_size),
                "cu_seqlens": frames,
                "window_index": window_index,
                "cu_window_seqlens": windows,
            },
            {"max_seqlen": frames.longest, "max_window_seqlen": windows.longest},
        )


# ---- The model of transformers with camera hooks and DeepStack -------------------------------------------------------


class Qwen25VLAttention(CameraAttention, Qwen2_5_VLAttention):
    """The decoder's attention with camera hooks."""


class Qwen25VLLayer(FusionLayer, Qwen2_5_VLDecoderLayer):
    """A decoder layer, in which a fusion may change the visual tokens."""


class WindowAttention(SegmentAttention, Qwen2_5_VLVisionAttention):
    """The vision encoder's attention within windows or within frames."""


class Qwen25VLPatchEmbedding(PatchEmbedding, Qwen2_5_VisionPatchEmbed):
    """The vision encoder's patch embedding."""


class Qwen25VLBackbone(QwenVLBackbone):
    """The original model with camera hooks, see `QwenVLBackbone`."""

    hooked_classes = {Qwen2_5_VLAttention: Qwen25VLAttention, Qwen2_5_VLDecoderLayer: Qwen25VLLayer}
    vision_classes = {
        Qwen2_5_VLVisionAttention: WindowAttention,
        Qwen2_5_VisionPatchEmbed: Qwen25VLPatchEmbedding,
    }
    preprocessor_class = QwenVLPreprocessor

    def __init__(self, vlm: Any, processor: Any, *args: Any, **kwargs: Any) -> None:
        super().__init__(vlm, processor, *args, **kwargs)
        self.tokens_per_second = vlm.config.vision_config.tokens_per_second

    @property
    def vision_rules(self) -> Qwen25VisionRules:
        return Qwen25VisionRules.of(self.vlm.config.vision_config)


# ---- A tiny model with random weights, see `TinyQwenVL` --------------------------------------------------------------

CHAT_TEMPLATE = Path(__file__).with_name("qwen25_vl.jinja")


def qwen25_processor(tokenizer: Any) -> Qwen2_5_VLProcessor:
    """Return Qwen2.5-VL's processor with another tokenizer. Chats have the released template's format."""
    return Qwen2_5_VLProcessor(
        image_processor=Qwen2VLImageProcessor(),
        video_processor=Qwen2VLVideoProcessor(),
        tokenizer=tokenizer,
        chat_template=CHAT_TEMPLATE.read_text().rstrip("\n"),
    )


@cache
def tiny_processor() -> Qwen2_5_VLProcessor:
    """Return Qwen2.5-VL's processor with the tiny tokenizer."""
    return qwen25_processor(tiny_tokenizer())


def tiny_preprocessor() -> QwenVLPreprocessor:
    """Return the tiny processor with the zoo's interface."""
    return QwenVLPreprocessor(tiny_processor())


class TinyQwen25VL(TinyQwenVL):
    """A tiny Qwen2.5-VL with random weights, see `TinyQwenVL`.

    The last layer of the vision encoder attends within frames, the others within windows.
    """

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
