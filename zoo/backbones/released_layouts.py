"""The decoders of released models as camera encodings see them, without a download."""

from __future__ import annotations

from dataclasses import replace

import torch

from zoo.backbones.pretrained_qwen import PretrainedQwen3VL, PretrainedQwen25VL, PretrainedQwen35
from zoo.backbones.qwen_weights import FAMILIES
from zoo.encodings.decoder_layout import DecoderLayout


def released_layouts() -> dict[str, DecoderLayout]:
    """Return the decoder of one released model of each family, by the family's title, with tensors on the CPU."""
    with torch.device("meta"):
        loaders = PretrainedQwen25VL(), PretrainedQwen3VL(), PretrainedQwen35()
        found = {FAMILIES[loader.family].title: loader.load().decoder_layout for loader in loaders}
    layouts = {}
    for title, layout in found.items():
        linear = layout.linear and replace(layout.linear, device="cpu")
        layouts[title] = replace(layout, device="cpu", linear=linear)
    return layouts
