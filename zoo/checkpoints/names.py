"""Official names of the tensors of Qwen2.5-VL and Spatial-MLLM, and ours in a model of the zoo.

Released files have the names of transformers 4.51, where the vision tower lay beside the decoder; those of
transformers 5, which has both inside `model`, are read as well.
"""

from __future__ import annotations

from zoo.geometry.vggt import official as vggt

LM_HEAD = "lm_head.weight"
V1_CONNECTOR = "vggt_embedding_merger."  # of Spatial-MLLM v1.0
QWEN = "backbone.vlm."
VGGT_MODEL, OFFICIAL_VGGT = "geometry.vggt.", "spatial_encoder.vggt_model."
CONNECTOR, OFFICIAL_CONNECTOR = "fusion.connector.", "connector."
RENAMED = (  # transformers 4.51, 5
    ("visual.", "model.visual."),
    ("model.embed_tokens.", "model.language_model.embed_tokens."),
    ("model.layers.", "model.language_model.layers."),
    ("model.norm.", "model.language_model.norm."),
)


def current_name(name: str) -> str:
    """The name in transformers 5 of a Qwen2.5-VL tensor named as in 4.51 or 5."""
    for old, new in RENAMED:
        if name.startswith(old):
            return new + name.removeprefix(old)
    return name


def released_name(name: str) -> str:
    """The name in transformers 4.51 of a Qwen2.5-VL tensor named as in 5 or 4.51."""
    for old, new in RENAMED:
        if name.startswith(new):
            return old + name.removeprefix(new)
    return name


def model_names(official: str) -> tuple[str, ...]:
    """Names in a `SpatialVLM` of an official tensor; several share its rows equally."""
    if official.startswith(OFFICIAL_VGGT):
        return tuple(VGGT_MODEL + name for name in vggt.current_names(official.removeprefix(OFFICIAL_VGGT)))
    if official.startswith(OFFICIAL_CONNECTOR):
        return (CONNECTOR + official.removeprefix(OFFICIAL_CONNECTOR),)
    return (QWEN + current_name(official),)


def official_name(name: str) -> str:
    """The official tensor that one of a `SpatialVLM` is, or is a part of.

    Raises:
        ValueError: there is none.
    """
    if name.startswith(VGGT_MODEL):
        return OFFICIAL_VGGT + vggt.official_name(name.removeprefix(VGGT_MODEL))
    if name.startswith(CONNECTOR):
        return OFFICIAL_CONNECTOR + name.removeprefix(CONNECTOR)
    if name.startswith(QWEN):
        return released_name(name.removeprefix(QWEN))
    raise ValueError(f"{name} has no official name")
