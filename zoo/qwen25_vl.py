"""The baseline: Qwen2.5-VL as it is."""

from __future__ import annotations

from typing import Any

from zoo.errors import InputError
from zoo.vlm import SpatialVLM


class Qwen25VL(SpatialVLM):
    """Qwen2.5-VL (arXiv 2502.13923): 2D tokens only, time in seconds, no cameras. Arguments as `SpatialVLM`.

    A scale may say what VGGT is: the baseline builds none.
    """

    def __init__(self, **parts: Any):
        for part, model in (("camera_encoding", "PRoPEMLLM"), ("fusion", "SpatialMLLM")):
            if parts.get(part) is not None:
                raise InputError(f"Qwen25VL is the baseline without {part}: take {model} for one")
        super().__init__(**parts)
