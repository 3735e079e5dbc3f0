"""Frames at even steps, by the rules of the repositories that use them."""

from __future__ import annotations

from typing import Literal

import torch

from datamodules.samplers.base import FrameSampler, SceneView, even_steps
from zoo.errors import InputError
from zoo.visual_grid import TEMPORAL_PATCH_SIZE

Rule = Literal["qwen_vl_utils", "linspace_floor", "floor_128"]


class UniformSampler(FrameSampler):
    """Frames at even steps from the first to the last.

    Args:
        rule: whose rounding.
            "qwen_vl_utils": n to the nearest even number (odd n to the multiple of four), indices to the
            nearest frame; the inference of Qwen2.5-VL and Spatial-MLLM.
            "linspace_floor": indices rounded down; Spatial-MLLM's training script.
            "floor_128": 128 candidates rounded down, and of those an even choice rounded down, so at most
            128; the uniform baseline beside Spatial-MLLM's space-aware sampling.
        candidates: choose among so many frames at even steps; null is all, or the rule's own.
    """

    def __init__(self, rule: Rule = "qwen_vl_utils", candidates: int | None = None) -> None:
        if rule == "floor_128" and candidates not in (None, 128):
            raise InputError(f"the rule floor_128 has 128 candidates, not {candidates}: take linspace_floor with them")
        self.rule, self.candidates = rule, 128 if rule == "floor_128" else candidates

    def count(self, n: int) -> int:
        if self.rule == "qwen_vl_utils":
            n = round(n / TEMPORAL_PATCH_SIZE) * TEMPORAL_PATCH_SIZE
        return super().count(n)

    def choose(self, scene: SceneView, n: int) -> list[int]:
        total = len(scene.pool)
        if self.rule == "qwen_vl_utils" and total > n:
            return torch.linspace(0, total - 1, n).round().long().tolist()  # float32, as qwen-vl-utils has it
        return even_steps(total, n)
