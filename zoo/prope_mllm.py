"""The camera-aware model: visual tokens that know their cameras."""

from __future__ import annotations

from typing import Any

from zoo.encodings import CameraEncoding
from zoo.vlm import SpatialVLM


class PRoPEMLLM(SpatialVLM):
    """Qwen2.5-VL whose decoder attends with PRoPE (arXiv 2507.10496) among visual tokens.

    Args:
        encoding: `PRoPE` in prope.yaml, or another one; null is the stock attention, bit for bit.
        parts: the other arguments of `SpatialVLM`.
    """

    def __init__(self, encoding: CameraEncoding | None, **parts: Any):
        super().__init__(encoding=encoding, **parts)
