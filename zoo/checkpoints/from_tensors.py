"""Released models from tensors with official names. The `Pretrained` backbones read folders instead."""

from __future__ import annotations

from typing import Any

from zoo.backbones.official_names import QWEN3, QWEN25, STACK_QWEN25_SECOND_NAMES, STACK_SECOND_NAMES
from zoo.backbones.pretrained import EmptyQwenVL, qwen_weights, refuse_v1
from zoo.backbones.released_configs import (
    ReleasedConfig,
    ReleasedGeometry,
    geothinker_geometry,
    qwen3_5_config,
    qwen3_config,
    spatial_mllm_geometry,
    spatial_stack_geometry,
    vg_llm_geometry,
)
from zoo.model import SpatialVLM
from zoo.weights.load import FirstNames, Tensors, first_tensor, load_weights


def load_qwen25_vl(config: dict[str, Any], state_dict: Tensors) -> SpatialVLM:
    """Return a Qwen2.5-VL with these weights, in their dtype. All parameters are trainable.

    Args:
        config: {"qwen": the model's config.json, ...}.
        state_dict: Tensors named as in transformers 4.51 or 5. A tied lm_head may be absent or present. Tensors may be
            read from files one by one.

    Raises:
        InputError: Tensors are missing, unexpected or of another shape.
    """
    return _load(ReleasedConfig(config).qwen, None, state_dict)


def load_qwen3_vl(config: dict[str, Any], state_dict: Tensors) -> SpatialVLM:
    """Return a Qwen3-VL with these weights, in their dtype. All parameters are trainable.

    Args:
        config: The config.json of a dense Qwen3-VL, or `Qwen3VLConfig.to_dict()`.
        state_dict: Tensors by transformers' names. A tied lm_head may be absent or present. Tensors may be read from
            files one by one.

    Raises:
        InputError: Tensors are missing, unexpected or of another shape.
    """
    return _load(qwen3_config(config), None, state_dict)


def load_qwen3_5(config: dict[str, Any], state_dict: Tensors) -> SpatialVLM:
    """Return a Qwen3.5 with these weights, in their dtype. All parameters are trainable.

    Args:
        config: The config.json of a dense Qwen3.5, or `Qwen3_5Config.to_dict()`.
        state_dict: Tensors by transformers' names. A tied lm_head and `mtp.…` may be absent or present. Tensors may be
            read from files one by one.

    Raises:
        InputError: Tensors are missing, unexpected or of another shape.
    """
    return _load(qwen3_5_config(config), None, state_dict)


def load_spatial_mllm(config: dict[str, Any], state_dict: Tensors) -> SpatialVLM:
    """Return a Spatial-MLLM v1.1 with these weights, in their dtype. All parameters are trainable.

    Args:
        config: {"qwen", "spatial_config", "connector_config", "vggt_aggregator"}, or a released config.json.
        state_dict: Tensors as for `load_qwen25_vl`, with `spatial_encoder.vggt_model.…` and `connector.…`. VGGT's
            heads, which this model does not use, may be absent or present.

    Raises:
        InputError: Tensors are missing, unexpected or of another shape.
    """
    refuse_v1(state_dict)
    released = ReleasedConfig(config)
    return _load(released.qwen, spatial_mllm_geometry(released.aggregator, released.layer), state_dict)


def load_vg_llm(config: dict[str, Any], state_dict: Tensors) -> SpatialVLM:
    """Return a VG-LLM with these weights, in their dtype. All parameters are trainable.

    Args:
        config: Its config.json, or {"qwen": its config.json, "vggt_aggregator": arguments of the aggregator}. Without
            "vggt_aggregator" they are VGGT-1B's.
        state_dict: Tensors as for `load_qwen25_vl`, with VGGT and merger in either released layout, which is recognized
            by the names. VGGT's dense heads, which this model does not use, may be absent or present.

    Raises:
        InputError: Tensors are missing, unexpected or of another shape, or the fusion is of another kind.
    """
    return _load(ReleasedConfig(config).qwen, vg_llm_geometry(_settings(config), state_dict), state_dict)


def load_geothinker(config: dict[str, Any], state_dict: Tensors) -> SpatialVLM:
    """Return a GeoThinker with these weights, in their dtype. All parameters are trainable.

    Args:
        config: Its config.json, or {"qwen": its config.json, "vggt_aggregator": arguments of the aggregator}. With a
            "text_config" it is on Qwen3-VL. Without "vggt_aggregator" the arguments are VGGT-1B's.
        state_dict: Tensors by official names. `cross_attn.bias_gate.…`, which the published code never reads, may be
            absent or present.

    Raises:
        InputError: Tensors are missing, unexpected or of another shape, or the fusion is of another kind.
    """
    settings = _settings(config)
    is_qwen3 = "text_config" in settings
    qwen = qwen3_config(settings) if is_qwen3 else ReleasedConfig(config).qwen
    return _load(qwen, geothinker_geometry(settings, QWEN3 if is_qwen3 else QWEN25), state_dict)


def load_spatial_stack(config: dict[str, Any], state_dict: Tensors) -> SpatialVLM:
    """Return a SpatialStack with these weights, in their dtype. All parameters are trainable.

    Args:
        config: Its config.json, or {"qwen": its config.json, "vggt_aggregator": arguments of the aggregator}. Without
            "vggt_aggregator" they are VGGT-1B's.
        state_dict: Tensors by official names. Parts that the published class registers twice may have either name or
            both.

    Raises:
        InputError: Tensors are missing, unexpected or of another shape, or the fusion is of another kind.
    """
    settings = _settings(config)
    is_qwen25 = "text_config" not in settings
    qwen = ReleasedConfig(config).qwen if is_qwen25 else qwen3_5_config(settings)
    tensors = FirstNames(state_dict, STACK_QWEN25_SECOND_NAMES if is_qwen25 else STACK_SECOND_NAMES)
    return _load(qwen, spatial_stack_geometry(settings, tensors, is_qwen25=is_qwen25), tensors)


def _settings(config: dict[str, Any]) -> dict[str, Any]:
    return config | config.get("qwen", {})


def _load(qwen: Any, parts: ReleasedGeometry | None, tensors: Tensors) -> SpatialVLM:
    """Return a model, with its geometry encoder and fusion if it has them."""
    dtype = first_tensor(tensors).dtype
    if parts is None:
        model = SpatialVLM(EmptyQwenVL(qwen, dtype))
        load_backbone(model, tensors)
        return model
    encoder = parts.load_encoder(tensors, dtype)
    encoder.vggt.source = {}  # a saved model contains these weights, so no loader reads them again
    model = SpatialVLM(EmptyQwenVL(qwen, dtype, parts.layout), geometry=lambda: encoder, fusion=parts.fusion)
    load_backbone(model, tensors, skip=tuple(parts.layout))
    parts.load_fusion(model.fusion, tensors)
    return model


def load_backbone(model: SpatialVLM, tensors: Tensors, skip: tuple[str, ...] = ()) -> None:
    """Load the Qwen-VL of a model. Tensors with prefixes in `skip` belong to other parts."""
    vlm = model.backbone.vlm
    load_weights(vlm, qwen_weights(vlm.config, tensors, skip))
