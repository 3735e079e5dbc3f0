"""config.json of Qwen-VL models and of those fused with VGGT, as it is written."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

from transformers import PreTrainedConfig, Qwen2_5_VLConfig, Qwen3_5Config, Qwen3VLConfig

from zoo.backbones.official_names import QWEN3, QWEN35, VG_LLM_FIRST
from zoo.backbones.released_configs import CONNECTOR_TYPE, GEOMETRY_PARTS, OTHERS
from zoo.backbones.released_geometry import GEOMETRY_KEYS, STACK_ADD, VGGT_SIZES
from zoo.checkpoints.layouts import official_layout
from zoo.fusions import AddFusion, PatchMergerFusion, StackFusion
from zoo.geometry.vggt.model import Aggregator
from zoo.geometry.vggt_encoder import VGGTEncoder

if TYPE_CHECKING:
    from zoo.model import SpatialVLM

AGGREGATOR = {name: each.default for name, each in inspect.signature(Aggregator).parameters.items()}
NEWER = {"layer_types", "rope_parameters", "text_config"}  # settings of transformers 5


def released_config(model: SpatialVLM, source: dict[str, Any] | None) -> dict[str, Any]:
    """Return the config.json, as the transformers of the release writes it, of a Qwen-VL or one fused with VGGT.

    Args:
        model: The exported model.
        source: Config.json of the folder that the weights came from; its settings are kept.
    """
    if model.backbone.vlm.config.model_type == QWEN3:
        return _nested(model.backbone.vlm.config) if source is None else source
    if model.backbone.vlm.config.model_type == QWEN35:
        current = _current(model.backbone.vlm.config) if source is None else source
        qwen = {name: value for name, value in current.items() if name not in GEOMETRY_PARTS}
        stock = qwen | {"architectures": ["Qwen3_5ForConditionalGeneration"]}
        return stock | fused_settings(model, source or {}, "Qwen3_5ForConditionalGenerationWithGeometry")
    flat = _flat(model.backbone.vlm.config) if source is None else source
    qwen = {name: value for name, value in flat.items() if name not in OTHERS}
    if not isinstance(model.fusion, AddFusion):
        stock = {"model_type": "qwen2_5_vl", "architectures": ["Qwen2_5_VLForConditionalGeneration"], **qwen}
        return stock | fused_settings(model, source or {}, "Qwen2_5_VLForConditionalGenerationWithVGGT")
    kept, geometry = source or {}, model.geometry
    assert isinstance(geometry, VGGTEncoder)
    aggregator = _aggregator(geometry)
    connector = {"connector_type": CONNECTOR_TYPE, "spatial_embeds_layer_idx": geometry.layers[0]}
    config = {
        "model_type": "spatial-mllm",
        "architectures": ["SpatialMLLMForConditionalGeneration"],
        **qwen,
        "spatial_config": kept.get("spatial_config", {}) | {name: aggregator.pop(name) for name in VGGT_SIZES},
        "connector_config": kept.get("connector_config", {}) | connector,
    }
    return config | _unusual(aggregator)


def fused_settings(model: SpatialVLM, source: dict[str, Any], architecture: str) -> dict[str, Any]:
    """Return what VG-LLM and SpatialStack write about their encoder and fusion; nothing for a model without."""
    if model.fusion is None:
        return {}
    assert isinstance(model.geometry, VGGTEncoder)
    return {
        "architectures": [architecture],
        **{name: source[name] for name in GEOMETRY_KEYS if name in source},
        **_geometry_keys(model, model.geometry, source),
        **_unusual(_aggregator(model.geometry)),
    }


def _aggregator(geometry: VGGTEncoder) -> dict[str, Any]:
    """Return all arguments of the aggregator."""
    given: Any = geometry.vggt.config["aggregator"]
    return AGGREGATOR | given


def _unusual(aggregator: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments that differ from VGGT-1B's, for which the published code has no settings."""
    unusual = {name: value for name, value in aggregator.items() if value != AGGREGATOR[name]}
    return {"vggt_aggregator": unusual} if unusual else {}


def _geometry_keys(model: SpatialVLM, geometry: VGGTEncoder, source: dict[str, Any]) -> dict[str, Any]:
    """Return the settings of encoder and fusion that follow from the model."""
    fusion, reference = model.fusion, {"reference_frame": geometry.reference}
    if isinstance(fusion, PatchMergerFusion) and official_layout(model) == VG_LLM_FIRST:
        return {"use_vggt_feature": True, **reference, "vggt_merger_hidden_dim": fusion.hidden}
    shared = {"use_geometry_encoder": True, "geometry_encoder_type": "vggt", **reference, "fusion_num_layers": 1}
    shared["geometry_merger_type"] = "mlp"
    if isinstance(fusion, PatchMergerFusion):
        added = {**shared, "feature_fusion_method": "add", "geometry_merger_hidden_dim": fusion.hidden}
        if model.backbone.vlm.config.model_type != QWEN35 and "geometry_fusion_layers" not in source:
            return added  # VG-LLM has no setting of layers
        return {**added, "geometry_fusion_layers": None, "geometry_encoder_layers": list(geometry.layers)}
    assert isinstance(fusion, StackFusion)
    encoder_layers = list(geometry.layers) * (len(fusion.decoder_layers) // geometry.num_layers)  # one each
    layers = {"geometry_fusion_layers": fusion.decoder_layers, "geometry_encoder_layers": encoder_layers}
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


def _current(config: Qwen3_5Config) -> dict[str, Any]:
    """Return the config of a Qwen3.5, which was released with the names of transformers 5."""
    nested = config.to_dict()
    text, vision = nested["text_config"], nested["vision_config"]
    return {
        **_own(nested),
        "model_type": QWEN35,
        "text_config": {
            **_own(text),
            **{name: text[name] for name in ("model_type", "layer_types", "rope_parameters")},
        },
        "vision_config": {**_own(vision), "model_type": QWEN35},
    }


def _own(settings: dict[str, Any]) -> dict[str, Any]:
    """Return settings without those that every model has, and without those of transformers 5."""
    generic = NEWER | PreTrainedConfig().to_dict().keys()
    return {name: value for name, value in settings.items() if name not in generic}
