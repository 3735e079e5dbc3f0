"""Official names of the tensors of Qwen-VL models, and of what Spatial-MLLM adds to them.

Released files of Qwen2.5-VL use the names of transformers 4.51, where the vision tower is beside the decoder. The names
of transformers 5, where both are inside `model`, are read as well; they are those of Qwen3-VL's and Qwen3.5's files.
"""

from __future__ import annotations

LM_HEAD = "lm_head.weight"
OFFICIAL_VGGT, OFFICIAL_CONNECTOR = "spatial_encoder.vggt_model.", "connector."
FUSED = (OFFICIAL_VGGT, OFFICIAL_CONNECTOR)  # parts of a Spatial-MLLM beside Qwen2.5-VL
QWEN25, QWEN3, QWEN35 = "qwen2_5_vl", "qwen3_vl", "qwen3_5"  # families, by the model_type of their config.json
NOT_LOADED = ("mtp.",)  # Qwen3.5's prediction of several tokens at once, which transformers has no module for
RENAMED: dict[str, dict[str, str]] = {  # released: transformers 5
    QWEN25: {
        "visual.": "model.visual.",
        "model.embed_tokens.": "model.language_model.embed_tokens.",
        "model.layers.": "model.language_model.layers.",
        "model.norm.": "model.language_model.norm.",
    },
    QWEN3: {},
    QWEN35: {},
}


def current_name(name: str, family: str = QWEN25) -> str:
    """Return the name in transformers 5 of a backbone's tensor named as released or as in 5."""
    renamed = RENAMED[family].items()
    return next((new + name.removeprefix(old) for old, new in renamed if name.startswith(old)), name)


def released_name(name: str, family: str = QWEN25) -> str:
    """Return the released name of a backbone's tensor named as released or as in transformers 5."""
    renamed = RENAMED[family].items()
    return next((old + name.removeprefix(new) for old, new in renamed if name.startswith(new)), name)
