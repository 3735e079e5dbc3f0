"""Qwen-VL models and Spatial-MLLM from tensors with official names; the `Pretrained` backbones read folders."""

from __future__ import annotations

from typing import Any

import torch

from zoo.backbones.official_names import FUSED
from zoo.backbones.pretrained_spatial_mllm import load_connector, load_vggt
from zoo.backbones.qwen_weights import EmptyQwenVL, qwen_filler, refuse_v1
from zoo.backbones.released_configs import ReleasedConfig, qwen3_5_config, qwen3_config
from zoo.fusions import AddFusion
from zoo.geometry.vggt_encoder import VGGTEncoder
from zoo.model import SpatialVLM
from zoo.weights.deferred import load_or_defer
from zoo.weights.lazy_tensors import Tensors


def load_qwen25_vl(config: dict[str, Any], state_dict: Tensors) -> SpatialVLM:
    """Return the baseline with these weights, in their dtype; all parameters are trainable.

    Args:
        config: {"qwen": the model's config.json, ...}.
        state_dict: Named as in transformers 4.51 or 5; a tied lm_head may be absent or present. May be read from files
            tensor by tensor.

    Raises:
        InputError: Lists tensors that are missing, unexpected or of another shape.
    """
    model = SpatialVLM(EmptyQwenVL(ReleasedConfig(config).qwen, _dtype(state_dict)))
    _fill(model, state_dict)
    return model


def load_qwen3_vl(config: dict[str, Any], state_dict: Tensors) -> SpatialVLM:
    """Return the baseline with these weights, in their dtype; all parameters are trainable.

    Args:
        config: Config.json of a dense Qwen3-VL, or `Qwen3VLConfig.to_dict()`.
        state_dict: By transformers' names; a tied lm_head may be absent or present. May be read from files tensor by
            tensor.

    Raises:
        InputError: Lists tensors that are missing, unexpected or of another shape.
    """
    model = SpatialVLM(EmptyQwenVL(qwen3_config(config), _dtype(state_dict)))
    _fill(model, state_dict)
    return model


def load_qwen3_5(config: dict[str, Any], state_dict: Tensors) -> SpatialVLM:
    """Return the baseline with these weights, in their dtype; all parameters are trainable.

    Args:
        config: Config.json of a dense Qwen3.5, or `Qwen3_5Config.to_dict()`.
        state_dict: By transformers' names; a tied lm_head and `mtp.…` may be absent or present. May be read from files
            tensor by tensor.

    Raises:
        InputError: Lists tensors that are missing, unexpected or of another shape.
    """
    model = SpatialVLM(EmptyQwenVL(qwen3_5_config(config), _dtype(state_dict)))
    _fill(model, state_dict)
    return model


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
    released, dtype = ReleasedConfig(config), _dtype(state_dict)
    vggt = load_vggt(released, state_dict, dtype)
    vggt.source = {}  # a saved model has these weights in it: no loader reads them again
    qwen = EmptyQwenVL(released.qwen, dtype)
    model = SpatialVLM(qwen, geometry=lambda: VGGTEncoder(vggt, (released.layer,)), fusion=AddFusion)
    _fill(model, state_dict, skip=FUSED)
    load_connector(model.fusion, state_dict)
    return model


def _fill(model: SpatialVLM, tensors: Tensors, skip: tuple[str, ...] = ()) -> None:
    vlm = model.backbone.vlm
    load_or_defer(vlm, tensors, qwen_filler(vlm, tensors, skip))


def _dtype(tensors: Tensors) -> torch.dtype:
    return next((tensor.dtype for tensor in tensors.values()), torch.float32)
