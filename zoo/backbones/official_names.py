"""Official tensor names of Qwen-VL models. Models with more parts declare theirs in `zoo.published`.

Released files of Qwen2.5-VL use the names of transformers 4.51, where the vision encoder is beside the decoder. The
names of transformers 5, where both are inside `model`, are also supported. Files of Qwen3-VL and Qwen3.5 use those.
"""

from __future__ import annotations

from collections.abc import Mapping

from zoo.weights.load import NameTable, replace_prefix

Layout = Mapping[str, str]  # prefixes of official names, and of the same tensors in a `SpatialVLM`
# a tied lm_head equals the embeddings
LM_HEAD, EMBEDDINGS = "lm_head.weight", "model.language_model.embed_tokens.weight"
QWEN, VGGT_MODEL, FUSION = "backbone.vlm.", "geometry.vggt.", "fusion."  # in a `SpatialVLM`
QWEN25, QWEN3, QWEN35 = "qwen2_5_vl", "qwen3_vl", "qwen3_5"  # families, by the model_type of their config.json

# ---- Backbones: released names, and those of transformers 5 ---------------------------------------------------------

RENAMED: dict[str, dict[str, str]] = {
    QWEN25: {
        "visual.": "model.visual.",
        "model.embed_tokens.": "model.language_model.embed_tokens.",
        "model.layers.": "model.language_model.layers.",
        "model.norm.": "model.language_model.norm.",
    },
    QWEN3: {},
    QWEN35: {},
}
NOT_LOADED = ("mtp.",)  # Qwen3.5's multi-token prediction, for which transformers has no module


def backbone_names(family: str = QWEN25) -> NameTable:
    """Return a table between released tensor names and those of transformers 5. Files may use either."""
    renamed = RENAMED[family]
    released = {new: old for old, new in renamed.items()}
    return NameTable(lambda name: (replace_prefix(name, renamed),), lambda name: replace_prefix(name, released))
