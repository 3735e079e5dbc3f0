"""What Qwen2.5-VL's vision tower computes from grids alone, by transformers' own functions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import (
    Qwen2_5_VisionPatchEmbed,
    Qwen2_5_VLAttention,
    Qwen2_5_VLDecoderLayer,
    Qwen2_5_VLVisionAttention,
)
from transformers.vision_utils import get_vision_cu_seqlens, get_vision_position_ids, get_vision_window_index

from zoo.backbones.attention import CameraAttention
from zoo.backbones.base import DeepstackLayer
from zoo.backbones.qwen_preprocessor import QwenVLPreprocessor
from zoo.backbones.qwen_vl import QwenVLBackbone
from zoo.backbones.vision import PatchEmbedding, SegmentAttention
from zoo.sequences.loaded_scene import Grid, Segments, VisionInputs
from zoo.sequences.rules import VisionRules


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
        """Read the numbers of a vision config."""
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


# ---- Qwen2.5-VL behind the backbone seam ----------------------------------------------------------------------------


class Qwen25VLAttention(CameraAttention, Qwen2_5_VLAttention):
    """The decoder's attention with camera hooks."""


class Qwen25VLLayer(DeepstackLayer, Qwen2_5_VLDecoderLayer):
    """A layer of the decoder, behind which features may be added to the visual tokens."""


class WindowAttention(SegmentAttention, Qwen2_5_VLVisionAttention):
    """The vision tower's attention, within windows or within frames."""


class Qwen25VLPatchEmbedding(PatchEmbedding, Qwen2_5_VisionPatchEmbed):
    """The vision tower's patch embedding."""


class Qwen25VLBackbone(QwenVLBackbone):
    """The stock model with camera hooks; see `QwenVLBackbone`."""

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
