"""Official tensor names of Qwen-VL models, and of the parts that models with a geometry encoder add.

Released files of Qwen2.5-VL use the names of transformers 4.51, where the vision encoder is beside the decoder. The
names of transformers 5, where both are inside `model`, are also supported. Files of Qwen3-VL and Qwen3.5 use those.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from zoo.weights.load import NameTable, replace_prefix

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


# ---- Geometry encoder and fusion: prefixes of official names, and of the same tensors in a `SpatialVLM` -------------

Layout = Mapping[str, str]
SPATIAL_MLLM: Layout = {"spatial_encoder.vggt_model.": VGGT_MODEL, "connector.": "fusion.connector."}
VG_LLM: Layout = {"geometry_encoder.vggt.": VGGT_MODEL, "geometry_merger.": "fusion.merger."}
VG_LLM_FIRST: Layout = {"vggt.": VGGT_MODEL, "merger.": "fusion.merger."}  # names of the first release
# SpatialStack's connectors, on Qwen3.5 and on Qwen2.5-VL. Its class registers some parts twice, so a file may hold
# either name or both.
STACK_VGGT = "model.geometry_encoder.vggt."
STACK, STACK_QWEN25 = "model.language_feature_fusion.fusion_layers.", "multi_layer_feature_fusion.fusion_layers."
STACK_SECOND_NAMES = {
    "geometry_encoder.": "model.geometry_encoder.",
    "geometry_merger.": "model.geometry_merger.",
    "language_feature_fusion.": "model.language_feature_fusion.",
}
STACK_QWEN25_SECOND_NAMES = {"language_feature_fusion.": "multi_layer_feature_fusion."}
SECOND_NAMES: dict[str, Layout] = {QWEN25: STACK_QWEN25_SECOND_NAMES, QWEN35: STACK_SECOND_NAMES}
# GeoVR's heads, tokens and teachers, which only its training needs
GEOVR_TRAINING = (
    *("model.camera_token.", "model.scale_token.", "camera_head.", "scale_head.", "dpt_head.", "distill_head_list."),
    *("geometry_encoder.", "metric_encoder."),
)


# GeoThinker's interactions: the decoder's layers in its files, and tensors in them that the published code never reads
GEOTHINKER_LAYERS = {QWEN25: "model.layers.", QWEN3: "model.language_model.layers."}
INTERACTION = ".cross_attn."
UNUSED = "bias_gate."


def geothinker_layout(family: str, layers: Iterable[int]) -> Layout:
    """Return the layout of a GeoThinker with interactions in these decoder layers."""
    start = "" if family == QWEN25 else "model."
    return {
        f"{start}geometry_encoder.vggt.": VGGT_MODEL,
        f"{start}geometry_merger.": f"{FUSION}merger.",
        **{f"{GEOTHINKER_LAYERS[family]}{layer}{INTERACTION}": f"{FUSION}layers.{layer}." for layer in layers},
    }


def stack_layout(family: str, decoder_layers: Sequence[int] | None = None) -> Layout:
    """Return the layout of a SpatialStack, or of a VG-LLM, which has the same names without decoder layers.

    Args:
        family: Family of its backbone.
        decoder_layers: Decoder layers of its connectors. The k-th connector of a layer is `{layer}.{k}`. None is a
            model with one merger.
    """
    start, prefix = ("", STACK_QWEN25) if family == QWEN25 else ("model.", STACK)
    layout = {f"{start}geometry_encoder.vggt.": VGGT_MODEL}
    if decoder_layers is None:
        return layout | {f"{start}geometry_merger.": f"{FUSION}merger."}
    seen: Counter[int] = Counter()
    for number, layer in enumerate(decoder_layers):
        for theirs, ours in (("geo_ln", "ln_q"), ("geo_mlp", "mlp")):
            layout[f"{prefix}{layer}.{seen[layer]}.{theirs}."] = f"{FUSION}connectors.{number}.{ours}."
        seen[layer] += 1
    return layout
