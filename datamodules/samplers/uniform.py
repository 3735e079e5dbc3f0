"""Frames at even steps, by the rules of the repositories that use them."""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from datamodules.samplers.base import FRAMES_PER_GRID_STEP, FrameSampler
from datamodules.video import Video

Rule = Literal["qwen_vl_utils", "linspace_floor", "floor_128"]
CANDIDATES = 128  # of the rule floor_128


class UniformSampler(FrameSampler):
    """Frames at even steps from the first to the last.

    Args:
        rule: whose rounding.
            "qwen_vl_utils": n to the nearest even number (odd n to the multiple of four), indices to the
            nearest frame; the inference of Qwen2.5-VL and Spatial-MLLM.
            "linspace_floor": indices rounded down; Spatial-MLLM's training script.
            "floor_128": 128 candidates rounded down, and of those an even choice rounded down, so at most
            128; the uniform baseline beside Spatial-MLLM's space-aware sampling.
    """

    def __init__(self, rule: Rule = "qwen_vl_utils") -> None:
        self.rule = rule

    def count(self, n: int) -> int:
        if self.rule == "qwen_vl_utils":
            return round(n / FRAMES_PER_GRID_STEP) * FRAMES_PER_GRID_STEP
        return min(n, CANDIDATES) if self.rule == "floor_128" else n

    def choose(self, video: Video, n: int, world_to_camera: Float[Tensor, "N 4 4"] | None, epoch: int) -> list[int]:
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
