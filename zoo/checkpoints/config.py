"""config.json of Qwen-VL models and of those fused with VGGT, as it is written."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

from transformers import PreTrainedConfig, Qwen2_5_VLConfig, Qwen3VLConfig

from zoo.backbones.official_names import QWEN3, VG_LLM_FIRST
from zoo.backbones.released_configs import CONNECTOR_TYPE, OTHERS
from zoo.backbones.released_geometry import GEOMETRY_KEYS, STACK_ADD, VGGT_SIZES
from zoo.checkpoints.layouts import official_layout
from zoo.fusions import AddFusion, PatchMergerFusion, StackFusion
from zoo.geometry.vggt.aggregator import Aggregator
from zoo.geometry.vggt_encoder import VGGTEncoder

if TYPE_CHECKING:
    from zoo.model import SpatialVLM

NEWER = {"layer_types", "rope_parameters", "text_config"}  # settings of transformers 5


def released_config(model: SpatialVLM, source: dict[str, Any] | None) -> dict[str, Any]:
    """Return the config.json, as the transformers of the release writes it, of a Qwen-VL or one fused with VGGT.

    Args:
        model: The exported model.
        source: Config.json of the folder that the weights came from; its settings are kept.
    """
    if model.backbone.vlm.config.model_type == QWEN3:
        return _nested(model.backbone.vlm.config) if source is None else source
    flat = _flat(model.backbone.vlm.config) if source is None else source
    qwen = {name: value for name, value in flat.items() if name not in OTHERS}
    if model.fusion is None:
        return {"model_type": "qwen2_5_vl", "architectures": ["Qwen2_5_VLForConditionalGeneration"], **qwen}
    kept, geometry = source or {}, model.geometry
    assert isinstance(geometry, VGGTEncoder)
    defaults = {name: each.default for name, each in inspect.signature(Aggregator).parameters.items()}
    given: Any = geometry.vggt.config["aggregator"]
    aggregator = defaults | given
    if not isinstance(model.fusion, AddFusion):
        unusual = {name: value for name, value in aggregator.items() if value != (defaults | VGGT_SIZES)[name]}
        return {
            "model_type": "qwen2_5_vl",
            "architectures": kept.get("architectures", ["Qwen2_5_VLForConditionalGenerationWithVGGT"]),
            **qwen,
            **{name: kept[name] for name in GEOMETRY_KEYS if name in kept},
            **_geometry_keys(model, geometry),
            **({"vggt_aggregator": unusual} if unusual else {}),  # the published code has no such settings
        }
    connector = {"connector_type": CONNECTOR_TYPE, "spatial_embeds_layer_idx": geometry.layers[0]}
    config = {
        "model_type": "spatial-mllm",
        "architectures": ["SpatialMLLMForConditionalGeneration"],
        **qwen,
        "spatial_config": kept.get("spatial_config", {}) | {name: aggregator.pop(name) for name in VGGT_SIZES},
        "connector_config": kept.get("connector_config", {}) | connector,
    }
    unusual = {name: value for name, value in aggregator.items() if value != defaults[name]}
    return config | ({"vggt_aggregator": unusual} if unusual else {})  # the published code has no such settings


def _geometry_keys(model: SpatialVLM, geometry: VGGTEncoder) -> dict[str, Any]:
    """Return what VG-LLM and SpatialStack write about their encoder and fusion."""
    fusion, reference = model.fusion, {"reference_frame": geometry.reference}
    if isinstance(fusion, PatchMergerFusion) and official_layout(model) == VG_LLM_FIRST:
        return {"use_vggt_feature": True, **reference, "vggt_merger_hidden_dim": fusion.hidden}
    shared = {"use_geometry_encoder": True, "geometry_encoder_type": "vggt", **reference, "fusion_num_layers": 1}
    shared["geometry_merger_type"] = "mlp"
    if isinstance(fusion, PatchMergerFusion):
        return {**shared, "feature_fusion_method": "add", "geometry_merger_hidden_dim": fusion.hidden}
    assert isinstance(fusion, StackFusion)
    layers = {"geometry_fusion_layers": fusion.decoder_layers, "geometry_encoder_layers": list(geometry.layers)}
    return {**shared, "feature_fusion_method": STACK_ADD, **layers}


def _flat(config: Qwen2_5_VLConfig) -> dict[str, Any]:
    """Return the decoder's settings beside the others, with the old names of RoPE's."""
    nested = config.to_dict()
    rope = nested["text_config"]["rope_parameters"]
    return {
        **_own(nested["text_config"] | nested),
        "rope_theta": rope["rope_theta"],
        "rope_scaling": {"type": "mrope", "mrope_section": list(rope["mrope_section"])},
        "vision_config": _own(nested["vision_config"]),
    }


def _nested(config: Qwen3VLConfig) -> dict[str, Any]:
    """Return the config of a Qwen3-VL with the old names of RoPE's settings."""
    nested = config.to_dict()
    text, vision = nested["text_config"], nested["vision_config"]
    rope = dict(text["rope_parameters"])
    return {
        **_own(nested),
        "model_type": QWEN3,
        "architectures": ["Qwen3VLForConditionalGeneration"],
        "text_config": {
            **_own(text),
            "model_type": text["model_type"],
            "rope_theta": rope.pop("rope_theta"),
            "rope_scaling": {**rope, "mrope_section": list(rope["mrope_section"])},
        },
        "vision_config": {**_own(vision), "model_type": QWEN3},
    }


def _own(settings: dict[str, Any]) -> dict[str, Any]:
    """Return settings without those that every model has, and without those of transformers 5."""
    generic = NEWER | PreTrainedConfig().to_dict().keys()
    return {name: value for name, value in settings.items() if name not in generic}
