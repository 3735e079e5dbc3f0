"""Qwen-VL models and Spatial-MLLM from tensors with official names; `zoo.checkpoints.pretrained` reads folders."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from contextlib import nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from transformers import (
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLProcessor,
    Qwen3VLForConditionalGeneration,
    Qwen3VLProcessor,
)
from transformers.initialization import no_init_weights
from transformers.modeling_utils import local_torch_dtype

from zoo.backbones.loader import BackboneLoader
from zoo.backbones.qwen3_vl.backbone import Qwen3VLBackbone
from zoo.backbones.qwen25_vl.backbone import Qwen25VLBackbone
from zoo.backbones.qwen_vl import QwenVLBackbone
from zoo.checkpoints.config import ReleasedConfig, qwen3_config
from zoo.checkpoints.names import (
    LM_HEAD,
    OFFICIAL_CONNECTOR,
    OFFICIAL_VGGT,
    QWEN3,
    QWEN25,
    current_name,
    released_name,
)
from zoo.errors import InputError
from zoo.fusions import AddFusion
from zoo.geometry.vggt import VGGT
from zoo.geometry.vggt_encoder import VGGTEncoder
from zoo.model import SpatialVLM
from zoo.weight_reading import TensorsOf, are_weights_later, meta_parameters, read_weights
from zoo.weights import PrefixView, load_into

FUSED = (OFFICIAL_VGGT, OFFICIAL_CONNECTOR)  # parts of a Spatial-MLLM beside Qwen2.5-VL
V1_CONNECTOR = "vggt_embedding_merger."  # of Spatial-MLLM v1.0


class Family(NamedTuple):
    """A family of released models: its title, transformers' classes, and the backbone around them."""

    title: str
    stock: Any
    processor: Any
    backbone: type[QwenVLBackbone]


FAMILIES = {
    QWEN25: Family("Qwen2.5-VL", Qwen2_5_VLForConditionalGeneration, Qwen2_5_VLProcessor, Qwen25VLBackbone),
    QWEN3: Family("Qwen3-VL", Qwen3VLForConditionalGeneration, Qwen3VLProcessor, Qwen3VLBackbone),
}


class EmptyQwenVL(BackboneLoader):
    """A Qwen-VL without weights and processor; the weights are filled in afterwards.

    Args:
        config: transformers' config of the model.
        dtype: of the weights.
    """

    is_pretrained = True

    def __init__(self, config: Any, dtype: torch.dtype) -> None:
        super().__init__()
        self.config, self.dtype = config, dtype

    def load(self) -> QwenVLBackbone:
        return FAMILIES[self.config.model_type].backbone(empty_qwen(self.config, self.dtype), None)


def load_qwen25_vl(config: dict[str, Any], state_dict: Mapping[str, Tensor]) -> SpatialVLM:
    """Return the baseline with these weights, in their dtype; all parameters are trainable.

    Args:
        config: {"qwen": the model's config.json, ...}.
        state_dict: named as in transformers 4.51 or 5; a tied lm_head may be absent or present. May be read from files
            tensor by tensor.

    Raises:
        InputError: lists tensors that are missing, unexpected or of another shape.
    """
    model = SpatialVLM(EmptyQwenVL(ReleasedConfig(config).qwen, _dtype(state_dict)))
    fill_qwen(model.backbone.vlm, state_dict)
    return model


def load_qwen3_vl(config: dict[str, Any], state_dict: Mapping[str, Tensor]) -> SpatialVLM:
    """Return the baseline with these weights, in their dtype; all parameters are trainable.

    Args:
        config: config.json of a dense Qwen3-VL, or `Qwen3VLConfig.to_dict()`.
        state_dict: by transformers' names; a tied lm_head may be absent or present. May be read from files tensor by
            tensor.

    Raises:
        InputError: lists tensors that are missing, unexpected or of another shape.
    """
    model = SpatialVLM(EmptyQwenVL(qwen3_config(config), _dtype(state_dict)))
    fill_qwen(model.backbone.vlm, state_dict)
    return model


def load_spatial_mllm(config: dict[str, Any], state_dict: Mapping[str, Tensor]) -> SpatialVLM:
    """Return Spatial-MLLM v1.1 with these weights, in their dtype; all parameters are trainable.

    Args:
        config: {"qwen", "spatial_config", "connector_config", "vggt_aggregator"}, or a released config.json.
        state_dict: as for `load_qwen25_vl`, with `spatial_encoder.vggt_model.…` and `connector.…`; VGGT's heads, which
            this model does not use, may be absent or present.

    Raises:
        InputError: lists tensors that are missing, unexpected or of another shape.
    """
    released, dtype = ReleasedConfig(config), _dtype(state_dict)
    vggt = load_vggt(released, state_dict, dtype)
    vggt.files = ()  # a saved model has these weights in it: no loader reads them again
    qwen = EmptyQwenVL(released.qwen, dtype)
    model = SpatialVLM(qwen, geometry=lambda: VGGTEncoder(vggt, (released.layer,)), fusion=AddFusion)
    fill_qwen(model.backbone.vlm, state_dict, skip=FUSED)
    load_connector(model.fusion, state_dict)
    return model


def empty_qwen(config: Any, dtype: torch.dtype) -> Any:
    """Return the stock model of a config in training mode, whose memory is taken when it is filled."""
    for part in (config, config.text_config, config.vision_config):
        part.dtype = dtype  # transformers prefers the dtype in a released config to the default
    # not .to(dtype) afterwards: that would round RoPE's frequencies as well
    on_meta = meta_parameters() if are_weights_later() else nullcontext()
    with local_torch_dtype(dtype), no_init_weights(), on_meta:  # memory is not taken until it is written to
        model = FAMILIES[config.model_type].stock(config)
    model.tie_weights()
    return model.train()


def fill_qwen(qwen: Any, tensors: Mapping[str, Tensor], skip: tuple[str, ...] = ()) -> None:
    """Copy official tensors into a stock Qwen-VL.

    Args:
        qwen: the model. If its lm_head is tied, that of the tensors is not read, as in the official code; a warning
            says if it differs from the embeddings.
        tensors: by official names.
        skip: prefixes of names to ignore.

    Raises:
        InputError: lists tensors that are missing, unexpected or misshapen; or the tensors are of Spatial-MLLM v1.0.
    """
    _refuse_v1(tensors)
    is_tied, family = qwen.config.tie_word_embeddings, qwen.config.model_type
    ignored = (LM_HEAD,) if is_tied else ()
    state = TensorsOf(qwen, without=ignored)
    read_weights(
        lambda: load_into(
            state,
            tensors,
            what=FAMILIES[family].title,
            current_names=lambda name: (current_name(name, family),),
            official_name=lambda name: released_name(name, family),
            skip=(*skip, *ignored),
        )
    )
    if is_tied and LM_HEAD in tensors:
        read_weights(lambda: _check_tied(tensors[LM_HEAD], qwen.get_input_embeddings().weight))


def _check_tied(head: Tensor, embeddings: Tensor) -> None:
    """Raise InputError for an lm_head that can't be tied, and warn of one that differs from the embeddings."""
    if head.shape != embeddings.shape:
        raise InputError(
            f"{LM_HEAD} {list(head.shape)} is tied to embeddings of {list(embeddings.shape)}: set tie_word_embeddings "
            "to false in the config, or mend the file"
        )
    if not (embeddings.is_meta or isinstance(embeddings, DTensor)) and not torch.equal(head.to(embeddings), embeddings):
        warnings.warn(
            f"{LM_HEAD} is tied to the embeddings by the config, and differs from them: it is not read", stacklevel=2
        )


def load_vggt(config: ReleasedConfig, tensors: Mapping[str, Tensor], dtype: torch.dtype) -> VGGT:
    """Return the VGGT of a Spatial-MLLM, without heads."""
    _refuse_v1(tensors)
    return VGGT.from_official({"aggregator": config.aggregator}, PrefixView(tensors, OFFICIAL_VGGT), dtype)


def load_connector(fusion: nn.Module | None, tensors: Mapping[str, Tensor]) -> bool:
    """Copy the connector of a Spatial-MLLM into an `AddFusion`; return False for another fusion."""
    if not isinstance(fusion, AddFusion):
        return False
    connector, weights = fusion.connector, PrefixView(tensors, OFFICIAL_CONNECTOR)
    read_weights(lambda: load_into(TensorsOf(connector), weights, what="connector"))
    return True


def _refuse_v1(tensors: Mapping[str, Tensor]) -> None:
    """Raise InputError for Spatial-MLLM v1.0.

    By its published code, v1.0 has VGGT under `vggt.`, and after a connector as v1.1's (with the patches of the second
    frame behind those of the first) another RMSNorm and MLP. None of its outputs are at hand to check a port against.
    """
    if any(name.startswith(V1_CONNECTOR) for name in tensors):
        raise InputError(
            f"these are weights of Spatial-MLLM v1.0 ({V1_CONNECTOR}*): its connector is another one, of two MLPs, for "
            "which there are no published numbers to check a port against; take Diankun/Spatial-MLLM-v1.1-Instruct-135K"
        )


def _dtype(tensors: Mapping[str, Tensor]) -> torch.dtype:
    return next((tensor.dtype for tensor in tensors.values()), torch.float32)
