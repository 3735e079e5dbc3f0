"""The baseline: Qwen2.5-VL as it is."""

from __future__ import annotations

from typing import Any

from zoo.errors import InputError
from zoo.vlm import SpatialVLM


class Qwen25VL(SpatialVLM):
    """Qwen2.5-VL (arXiv 2502.13923): 2D tokens only, time in seconds, no cameras. Arguments as `SpatialVLM`."""

    def __init__(self, **parts: Any):
        if parts.get("encoding") is not None:
            raise InputError("Qwen25VL is the baseline without cameras: take PRoPEMLLM for an encoding")
        super().__init__(**parts)
