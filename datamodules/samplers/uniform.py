"""Frames at even steps, by the rules of the repositories that use them."""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from torch import Tensor

from datamodules.samplers.base import FRAMES_PER_GRID_STEP, FrameSampler
from datamodules.video import Video

CANDIDATES = 128  # of the rule floor_128


class UniformSampler(FrameSampler):
    """Frames at even steps from the first to the last.

    Args:
        rule: whose rounding.
            "qwen_vl_utils": n to the nearest even number (ties to the multiple of four), indices to the nearest
            frame; Qwen2.5-VL's and Spatial-MLLM's inference.
            "linspace_floor": indices rounded down, duplicates dropped; Spatial-MLLM's training script.
            "floor_128": 128 candidates rounded down, and of those (so at most 128) an even choice rounded down; the
            uniform baseline beside Spatial-MLLM's space-aware sampling.
    """

    def __init__(self, rule: Literal["qwen_vl_utils", "linspace_floor", "floor_128"] = "qwen_vl_utils") -> None:
        self.rule = rule

    def count(self, n: int) -> int:
        if self.rule == "qwen_vl_utils":
            return round(n / FRAMES_PER_GRID_STEP) * FRAMES_PER_GRID_STEP
        return min(n, CANDIDATES) if self.rule == "floor_128" else n

    def choose(self, video: Video, n: int, world_to_camera: Tensor | None) -> list[int]:
        total, n = video.num_frames, self.count(n)
        if total <= n:
            return list(range(total))
        if self.rule == "qwen_vl_utils":
            return torch.linspace(0, total - 1, n).round().long().tolist()  # float32, as qwen-vl-utils has it
        if self.rule == "linspace_floor":
            return _floor_steps(total, n)
        candidates = _floor_steps(total, min(total, CANDIDATES))
        return [candidates[i] for i in _floor_steps(len(candidates), n)]


def _floor_steps(total: int, n: int) -> list[int]:
    return np.unique(np.linspace(0, total - 1, n, dtype=int)).tolist()
