"""Qwen2.5-VL and Spatial-MLLM from official weights by their names; folders are for `zoo.checkpoints.pretrained`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from transformers import Qwen2_5_VLConfig

from zoo.backbones.base import BackboneLoader
from zoo.backbones.qwen25_vl import Qwen25VLBackbone
from zoo.checkpoints.config import ReleasedConfig
from zoo.checkpoints.parts import empty_qwen, empty_vggt, fill_parts
from zoo.fusions import AddFusion
from zoo.geometry.vggt_encoder import VGGTEncoder
from zoo.model import SpatialVLM


class EmptyQwen25VL(BackboneLoader):
    """A Qwen2.5-VL whose weights are to be filled in; it has no processor."""

    is_pretrained = True

    def __init__(self, config: Qwen2_5_VLConfig, dtype: torch.dtype) -> None:
        super().__init__()
        self.config, self.dtype = config, dtype

    def load(self) -> Qwen25VLBackbone:
        return Qwen25VLBackbone(empty_qwen(self.config, self.dtype), None)


def load_qwen25_vl(config: dict[str, Any], state_dict: Mapping[str, Tensor]) -> SpatialVLM:
    """The baseline with these weights, in their dtype; all of it is trainable.

    Args:
        config: {"qwen": the model's config.json, ...}.
        state_dict: named as in transformers 4.51 or 5; a tied lm_head may be absent or present. May be read from files
            tensor by tensor.

    Raises:
        InputError: listing tensors that are missing, unexpected or of another shape.
    """
    model = SpatialVLM(EmptyQwen25VL(ReleasedConfig(config).qwen, _dtype(state_dict)))
    fill_parts(state_dict, qwen=model.backbone.vlm)
    return model


def load_spatial_mllm(config: dict[str, Any], state_dict: Mapping[str, Tensor]) -> SpatialVLM:
    """Spatial-MLLM v1.1 with these weights, in their dtype; all of it is trainable.

    Args:
        config: {"qwen", "spatial_config", "connector_config", "vggt_aggregator"}, or a released config.json.
        state_dict: as for `load_qwen25_vl`, with `spatial_encoder.vggt_model.…` and `connector.…`; VGGT's heads, which
            this model does not use, may be absent or present.

    Raises:
        InputError: listing tensors that are missing, unexpected or of another shape.
    """
    released, dtype = ReleasedConfig(config), _dtype(state_dict)
    vggt = empty_vggt(released.aggregator, dtype)
    model = SpatialVLM(
        EmptyQwen25VL(released.qwen, dtype), geometry=lambda: VGGTEncoder(vggt, released.layer), fusion=AddFusion
    )
    assert isinstance(model.fusion, AddFusion)
    fill_parts(state_dict, qwen=model.backbone.vlm, vggt=vggt, connector=model.fusion.connector)
    return model


def _dtype(tensors: Mapping[str, Tensor]) -> torch.dtype:
    return next((tensor.dtype for tensor in tensors.values()), torch.float32)
