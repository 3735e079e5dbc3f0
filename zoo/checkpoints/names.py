"""Official names of the tensors of Qwen-VL models and Spatial-MLLM, and their names in a `SpatialVLM`.

Released files of Qwen2.5-VL use the names of transformers 4.51, where the vision tower is beside the decoder. The names
of transformers 5, where both are inside `model`, are read as well; they are those of Qwen3-VL's files.
"""

from __future__ import annotations

from zoo.geometry.vggt import official as vggt

LM_HEAD = "lm_head.weight"
QWEN = "backbone.vlm."
VGGT_MODEL, OFFICIAL_VGGT = "geometry.vggt.", "spatial_encoder.vggt_model."
CONNECTOR, OFFICIAL_CONNECTOR = "fusion.connector.", "connector."
QWEN25, QWEN3 = "qwen2_5_vl", "qwen3_vl"  # families, by the model_type of their config.json
RENAMED: dict[str, dict[str, str]] = {  # released: transformers 5
    QWEN25: {
        "visual.": "model.visual.",
        "model.embed_tokens.": "model.language_model.embed_tokens.",
        "model.layers.": "model.language_model.layers.",
        "model.norm.": "model.language_model.norm.",
    },
    QWEN3: {},
}


def current_name(name: str, family: str = QWEN25) -> str:
    """Return the name in transformers 5 of a backbone's tensor named as released or as in 5."""
    renamed = RENAMED[family].items()
    return next((new + name.removeprefix(old) for old, new in renamed if name.startswith(old)), name)


def released_name(name: str, family: str = QWEN25) -> str:
    """Return the released name of a backbone's tensor named as released or as in transformers 5."""
    renamed = RENAMED[family].items()
    return next((old + name.removeprefix(new) for old, new in renamed if name.startswith(new)), name)


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
