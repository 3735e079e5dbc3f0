"""What Qwen2.5-VL's vision tower computes from grids alone, by transformers' own functions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers.vision_utils import get_vision_cu_seqlens, get_vision_position_ids, get_vision_window_index

from zoo.sequences.rules import VisionRules
from zoo.sequences.scene_inputs import Grid
from zoo.sequences.vision_inputs import Segments, VisionInputs


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
