"""Released models from tensors with official names. The `Pretrained` backbones read folders instead."""

from __future__ import annotations

from typing import Any

from zoo.backbones.pretrained import (
    EmptyBackbone,
    PretrainedBackbone,
    PretrainedQwen3VL,
    PretrainedQwen25VL,
    PretrainedQwen35,
    refuse_unsupported,
)
from zoo.model import SpatialVLM
from zoo.weights.load import Tensors, first_tensor, load_weights


def load_qwen25_vl(config: dict[str, Any], state_dict: Tensors) -> SpatialVLM:
    """Return a Qwen2.5-VL with these weights, in their dtype. All parameters are trainable.

    Args:
        config: {"qwen": the model's config.json, ...}.
        state_dict: Tensors named as in transformers 4.51 or 5. A tied lm_head may be absent or present. Tensors may be
            read from files one by one.

    Raises:
        InputError: Tensors are missing, unexpected or of another shape.
    """
    return model_from_tensors(PretrainedQwen25VL, config, None, state_dict)


def load_qwen3_vl(config: dict[str, Any], state_dict: Tensors) -> SpatialVLM:
    """Return a Qwen3-VL with these weights, in their dtype. All parameters are trainable.

    Args:
        config: The config.json of a dense Qwen3-VL, or `Qwen3VLConfig.to_dict()`.
        state_dict: Tensors by transformers' names. A tied lm_head may be absent or present. Tensors may be read from
            files one by one.

    Raises:
        InputError: Tensors are missing, unexpected or of another shape.
    """
    return model_from_tensors(PretrainedQwen3VL, config, None, state_dict)


def load_qwen3_5(config: dict[str, Any], state_dict: Tensors) -> SpatialVLM:
    """Return a Qwen3.5 with these weights, in their dtype. All parameters are trainable.

    Args:
        config: The config.json of a dense Qwen3.5, or `Qwen3_5Config.to_dict()`.
        state_dict: Tensors by transformers' names. A tied lm_head and `mtp.…` may be absent or present. Tensors may be
            read from files one by one.

    Raises:
        InputError: Tensors are missing, unexpected or of another shape.
    """
    return model_from_tensors(PretrainedQwen35, config, None, state_dict)


def model_from_tensors(
    kind: type[PretrainedBackbone], config: dict[str, Any], parts: Any, tensors: Tensors
) -> SpatialVLM:
    """Return a model, with its geometry encoder and fusion if it has them.

    Args:
        kind: Class of the released model.
        config: Its config.json, or {"qwen": its config.json, ...}.
        parts: A `zoo.published.release.ReleasedGeometry`. None is a backbone alone.
        tensors: All tensors by official names.
    """
    refuse_unsupported(tensors)
    dtype, settings = first_tensor(tensors).dtype, kind.read_config(config.get("qwen", config))
    if parts is None:
        model = SpatialVLM(EmptyBackbone(kind, settings, dtype))
        load_backbone(kind, model, tensors)
        return model
    encoder = parts.load_encoder(tensors, dtype, is_restorable=False)  # a saved model contains these weights
    empty = EmptyBackbone(kind, settings, dtype, parts.layout)
    model = SpatialVLM(empty, geometry=lambda: encoder, fusion=parts.fusion)
    load_backbone(kind, model, tensors, skip=tuple(parts.layout))
    parts.load_fusion(model.fusion, tensors)
    return model


def load_backbone(
    kind: type[PretrainedBackbone], model: SpatialVLM, tensors: Tensors, skip: tuple[str, ...] = ()
) -> None:
    """Load the backbone of a model. Tensors with prefixes in `skip` belong to other parts."""
    vlm = model.backbone.vlm
    load_weights(vlm, kind.weights(vlm.config, tensors, skip))
