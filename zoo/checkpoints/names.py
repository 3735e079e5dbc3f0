"""Official names of the tensors of Qwen-VL models and Spatial-MLLM, and their names in a `SpatialVLM`."""

from __future__ import annotations

from zoo.backbones.official_names import OFFICIAL_CONNECTOR, OFFICIAL_VGGT, QWEN25, current_name, released_name
from zoo.geometry.vggt import official as vggt

QWEN = "backbone.vlm."
VGGT_MODEL, CONNECTOR = "geometry.vggt.", "fusion.connector."


def model_names(official: str, family: str = QWEN25) -> tuple[str, ...]:
    """Return the names in a `SpatialVLM` of an official tensor; several share its rows equally."""
    if official.startswith(OFFICIAL_VGGT):
        return tuple(VGGT_MODEL + name for name in vggt.current_names(official.removeprefix(OFFICIAL_VGGT)))
    if official.startswith(OFFICIAL_CONNECTOR):
        return (CONNECTOR + official.removeprefix(OFFICIAL_CONNECTOR),)
    return (QWEN + current_name(official, family),)


def official_name(name: str, family: str = QWEN25) -> str:
    """Return the official name of a tensor of a `SpatialVLM`, or of the tensor that it is a part of."""
    if name.startswith(VGGT_MODEL):
        return OFFICIAL_VGGT + vggt.official_name(name.removeprefix(VGGT_MODEL))
    if name.startswith(CONNECTOR):
        return OFFICIAL_CONNECTOR + name.removeprefix(CONNECTOR)
    return released_name(name.removeprefix(QWEN), family)
