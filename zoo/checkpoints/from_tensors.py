"""Released models from tensors with official names; the `Pretrained` backbones read folders."""

from __future__ import annotations

from typing import Any

from zoo.backbones.official_names import STACK_QWEN25_SECOND_NAMES, STACK_SECOND_NAMES
from zoo.backbones.pretrained import EmptyQwenVL, qwen_weights, refuse_v1
from zoo.backbones.released_configs import (
    ReleasedConfig,
    ReleasedGeometry,
    qwen3_5_config,
    qwen3_config,
    spatial_mllm_geometry,
    spatial_stack_geometry,
    vg_llm_geometry,
)
from zoo.model import SpatialVLM
from zoo.weights.load import FirstNames, Tensors, first_tensor, load_weights


def load_qwen25_vl(config: dict[str, Any], state_dict: Tensors) -> SpatialVLM:
    """Return the baseline with these weights, in their dtype; all parameters are trainable.

    Args:
        config: {"qwen": the model's config.json, ...}.
        state_dict: Named as in transformers 4.51 or 5; a tied lm_head may be absent or present. May be read from files
            tensor by tensor.

    Raises:
        InputError: Lists tensors that are missing, unexpected or of another shape.
    """
    return _load(ReleasedConfig(config).qwen, None, state_dict)


def load_qwen3_vl(config: dict[str, Any], state_dict: Tensors) -> SpatialVLM:
    """Return the baseline with these weights, in their dtype; all parameters are trainable.

    Args:
        config: Config.json of a dense Qwen3-VL, or `Qwen3VLConfig.to_dict()`.
        state_dict: By transformers' names; a tied lm_head may be absent or present. May be read from files tensor by
            tensor.

    Raises:
        InputError: Lists tensors that are missing, unexpected or of another shape.
    """
    return _load(qwen3_config(config), None, state_dict)


def load_qwen3_5(config: dict[str, Any], state_dict: Tensors) -> SpatialVLM:
    """Return the baseline with these weights, in their dtype; all parameters are trainable.

    Args:
        config: Config.json of a dense Qwen3.5, or `Qwen3_5Config.to_dict()`.
        state_dict: By transformers' names; a tied lm_head and `mtp.…` may be absent or present. May be read from files
            tensor by tensor.

    Raises:
        InputError: Lists tensors that are missing, unexpected or of another shape.
    """
    return _load(qwen3_5_config(config), None, state_dict)


def load_spatial_mllm(config: dict[str, Any], state_dict: Tensors) -> SpatialVLM:
    """Return Spatial-MLLM v1.1 with these weights, in their dtype; all parameters are trainable.

    Args:
        config: {"qwen", "spatial_config", "connector_config", "vggt_aggregator"}, or a released config.json.
        state_dict: As for `load_qwen25_vl`, with `spatial_encoder.vggt_model.…` and `connector.…`; VGGT's heads, which
            this model does not use, may be absent or present.

    Raises:
        InputError: Lists tensors that are missing, unexpected or of another shape.
    """
    refuse_v1(state_dict)
    released = ReleasedConfig(config)
    return _load(released.qwen, spatial_mllm_geometry(released.aggregator, released.layer), state_dict)


def load_vg_llm(config: dict[str, Any], state_dict: Tensors) -> SpatialVLM:
    """Return a VG-LLM with these weights, in their dtype; all parameters are trainable.

    Args:
        config: {"qwen": its config.json, "vggt_aggregator": arguments of the aggregator, absent for VGGT-1B's}, or its
            config.json.
        state_dict: As for `load_qwen25_vl`, with VGGT and merger in either released layout, which the names tell apart;
            VGGT's dense heads, which this model does not use, may be absent or present.

    Raises:
        InputError: Lists tensors that are missing, unexpected or of another shape; or a fusion of another kind.
    """
    return _load(ReleasedConfig(config).qwen, vg_llm_geometry(_settings(config), state_dict), state_dict)


def load_spatial_stack(config: dict[str, Any], state_dict: Tensors) -> SpatialVLM:
    """Return a SpatialStack with these weights, in their dtype; all parameters are trainable.

    Args:
        config: {"qwen": its config.json, "vggt_aggregator": arguments of the aggregator, absent for VGGT-1B's}, or its
            config.json.
        state_dict: By official names; the parts that the published class registers twice have either name or both.

    Raises:
        InputError: Lists tensors that are missing, unexpected or of another shape; or a fusion of another kind.
    """
    settings = _settings(config)
    is_qwen25 = "text_config" not in settings
    qwen = ReleasedConfig(config).qwen if is_qwen25 else qwen3_5_config(settings)
    tensors = FirstNames(state_dict, STACK_QWEN25_SECOND_NAMES if is_qwen25 else STACK_SECOND_NAMES)
    return _load(qwen, spatial_stack_geometry(settings, tensors, is_qwen25=is_qwen25), tensors)


def _settings(config: dict[str, Any]) -> dict[str, Any]:
    return config | config.get("qwen", {})


def _load(qwen: Any, parts: ReleasedGeometry | None, tensors: Tensors) -> SpatialVLM:
    """Return a model with its geometry encoder and fusion, if it has some."""
    dtype = first_tensor(tensors).dtype
    if parts is None:
        model = SpatialVLM(EmptyQwenVL(qwen, dtype))
        load_backbone(model, tensors)
        return model
    encoder = parts.load_encoder(tensors, dtype)
    encoder.vggt.source = {}  # a saved model has these weights in it: no loader reads them again
    model = SpatialVLM(EmptyQwenVL(qwen, dtype, parts.layout), geometry=lambda: encoder, fusion=parts.fusion)
    load_backbone(model, tensors, skip=tuple(parts.layout))
    parts.load_fusion(model.fusion, tensors)
    return model


def load_backbone(model: SpatialVLM, tensors: Tensors, skip: tuple[str, ...] = ()) -> None:
    """Load the Qwen-VL of a model; tensors of prefixes in `skip` belong to other parts."""
    vlm = model.backbone.vlm
    load_weights(vlm, qwen_weights(vlm.config, tensors, skip))
