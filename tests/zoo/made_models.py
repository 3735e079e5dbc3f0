"""Small models made in Python, none of whose branches is zero."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch

from zoo import (
    ConcatSplitFusion,
    DatasetGeometry,
    DeepFusion,
    LoRA,
    PRoPE,
    SpatialVLM,
    TinyQwen25VL,
    TinyVGGT,
    ViewAttention,
)

SIZES: dict[str, Any] = dict(layers=3, hidden_size=64, heads=2, key_value_heads=1, vision_hidden_size=32)
PARTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "PRoPE": {
        "geometry": partial(DatasetGeometry, depth=False),
        "fusion": ConcatSplitFusion,
        "view_mixer": partial(ViewAttention, head_dim=16),
        "camera_encoding": PRoPE(),
    },
    "VGGT and LoRA": {
        "geometry": partial(TinyVGGT, path=None, embed_dim=16, depth=4, num_heads=2, layers=[1, -1]),
        "fusion": partial(DeepFusion, decoder_layers=[1, 0]),
        "lora": LoRA(r=2),
    },
}
QUESTIONS = ["How many chair(s) are in this room?", "What is the size of this room (in square meters)?"]


def model_of(name: str) -> SpatialVLM:
    torch.manual_seed(0)
    return randomized(SpatialVLM(TinyQwen25VL(**SIZES), **PARTS[name]))


def randomized(model: SpatialVLM) -> SpatialVLM:
    """Zero-initialized projections too: a part that is not loaded shows."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.02)
    return model.requires_grad_(True).eval()
