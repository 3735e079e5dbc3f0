"""Official names of the tensors of Qwen-VL models and of what is fused with them, and their names in a `SpatialVLM`."""

from __future__ import annotations

from zoo.backbones.official_names import QWEN, QWEN25, SPATIAL_MLLM, VGGT_MODEL, Layout, current_name, released_name
from zoo.geometry.vggt import model as vggt


def model_names(official: str, family: str = QWEN25, layout: Layout = SPATIAL_MLLM) -> tuple[str, ...]:
    """Return the names in a `SpatialVLM` of an official tensor; several share its rows equally."""
    for theirs, ours in layout.items():
        if official.startswith(theirs):
            rest = official.removeprefix(theirs)
            return tuple(ours + name for name in (vggt.current_names(rest) if ours == VGGT_MODEL else (rest,)))
    return (QWEN + current_name(official, family),)


def official_name(name: str, family: str = QWEN25, layout: Layout = SPATIAL_MLLM) -> str:
    """Return the official name of a tensor of a `SpatialVLM`, or of the tensor that it is a part of."""
    for theirs, ours in layout.items():
        if name.startswith(ours):
            rest = name.removeprefix(ours)
            return theirs + (vggt.official_name(rest) if ours == VGGT_MODEL else rest)
    return released_name(name.removeprefix(QWEN), family)
