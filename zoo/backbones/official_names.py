"""Official names of the tensors of Qwen-VL models, and of what models with a geometry encoder add to them.

Released files of Qwen2.5-VL use the names of transformers 4.51, where the vision tower is beside the decoder. The names
of transformers 5, where both are inside `model`, are read as well; they are those of Qwen3-VL's and Qwen3.5's files.
"""

from __future__ import annotations

from collections.abc import Mapping

LM_HEAD = "lm_head.weight"
QWEN, VGGT_MODEL, FUSION = "backbone.vlm.", "geometry.vggt.", "fusion."  # in a `SpatialVLM`
Layout = Mapping[str, str]  # prefixes of official names, and of the same tensors in a `SpatialVLM`
SPATIAL_MLLM: Layout = {"spatial_encoder.vggt_model.": VGGT_MODEL, "connector.": "fusion.connector."}
VG_LLM: Layout = {"geometry_encoder.vggt.": VGGT_MODEL, "geometry_merger.": "fusion.merger."}
VG_LLM_FIRST: Layout = {"vggt.": VGGT_MODEL, "merger.": "fusion.merger."}  # of its first release
# SpatialStack's connectors, on Qwen3.5 and on Qwen2.5-VL; its class registers some parts twice, and a file may hold
# either name or both
STACK_VGGT = "model.geometry_encoder.vggt."
STACK, STACK_QWEN25 = "model.language_feature_fusion.fusion_layers.", "multi_layer_feature_fusion.fusion_layers."
STACK_SECOND_NAMES = {
    "geometry_encoder.": "model.geometry_encoder.",
    "geometry_merger.": "model.geometry_merger.",
    "language_feature_fusion.": "model.language_feature_fusion.",
}
STACK_QWEN25_SECOND_NAMES = {"language_feature_fusion.": "multi_layer_feature_fusion."}
# GeoVR's heads, tokens and teachers, which its training alone needs
GEOVR_TRAINING = (
    *("model.camera_token.", "model.scale_token.", "camera_head.", "scale_head.", "dpt_head.", "distill_head_list."),
    *("geometry_encoder.", "metric_encoder."),
)
QWEN25, QWEN3, QWEN35 = "qwen2_5_vl", "qwen3_vl", "qwen3_5"  # families, by the model_type of their config.json
SECOND_NAMES: dict[str, Layout] = {QWEN25: STACK_QWEN25_SECOND_NAMES, QWEN35: STACK_SECOND_NAMES}
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
