"""What Qwen3-VL's vision tower computes from grids alone, by transformers' own functions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers.vision_utils import (
    get_vision_cu_seqlens,
    get_vision_interpolation_indices_and_weights,
    get_vision_position_ids,
)

from zoo.sequences.rules import VisionRules
from zoo.sequences.scene_inputs import Grid
from zoo.sequences.vision_inputs import Segments, VisionInputs


@dataclass(frozen=True)
class Qwen3VisionRules(VisionRules):
    """Positions and frames of the patches, and how learned positions are interpolated to a grid.

    Attributes:
        spatial_merge_size: Patches per side in one visual token.
        side: Of the square of learned positions.
        mode: Of the interpolation.
        align_corners: Of the interpolation.
    """

    spatial_merge_size: int
    side: int
    mode: str
    align_corners: bool

    @classmethod
    def of(cls, tower: Any) -> Qwen3VisionRules:
        """Read the numbers of a vision tower."""
        merge = tower.config.spatial_merge_size
        return cls(merge, tower.num_grid_per_side, tower.interpolation_mode, tower.interpolation_align_corners)

    def inputs(self, grids: Sequence[Grid]) -> VisionInputs:
        grid_thw = torch.tensor(grids)
        indices, weights = get_vision_interpolation_indices_and_weights(
            grid_thw,
            num_grid_per_side=self.side,
            mode=self.mode,
            align_corners=self.align_corners,
            spatial_merge_size=self.spatial_merge_size,
        )
        frames = Segments(get_vision_cu_seqlens(grid_thw))
        return VisionInputs(
            [t * h * w // self.spatial_merge_size**2 for t, h, w in grids],
            {
                "interp_indices": indices,
                "interp_weights": weights,
                "position_ids": get_vision_position_ids(grid_thw, self.spatial_merge_size),
                "cu_seqlens": frames,
            },
            {"max_seqlen": frames.longest},
        )
