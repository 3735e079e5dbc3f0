"""Qwen2.5-VL and Spatial-MLLM from official weights by their names; folders are for `zoo.checkpoints.pretrained`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration
from transformers import Qwen2_5_VLProcessor as Processor

from zoo.backbone import Backbone
from zoo.checkpoints.config import ReleasedConfig
from zoo.checkpoints.parts import empty_qwen, empty_vggt, fill_parts
from zoo.fusions import AddFusion
from zoo.geometry.vggt_encoder import VGGTEncoder
from zoo.optim import LearningRates
from zoo.qwen25_vl import Qwen25VL
from zoo.spatial_mllm import SpatialMLLM

ALL_PARTS = LearningRates(vision=LearningRates().connector, geometry=LearningRates().connector)


class EmptyQwen25VL(Backbone):
    """A Qwen2.5-VL to be filled; it has no processor."""

    pretrained = True

    def __init__(self, config: Qwen2_5_VLConfig, dtype: torch.dtype):
        super().__init__()
        self.config, self.dtype = config, dtype

    def load(self) -> tuple[Qwen2_5_VLForConditionalGeneration, Processor | None]:
        return empty_qwen(self.config, self.dtype), None


def load_qwen25_vl(config: dict[str, Any], state_dict: Mapping[str, Tensor]) -> Qwen25VL:
    """The baseline with these weights, in their dtype; all of it is trainable.

    Args:
        config: {"qwen": the model's config.json, ...}.
        state_dict: named as in transformers 4.51 or 5; a tied lm_head may be absent or present. May be read from
            files as it is asked for.

    Raises:
        InputError: listing tensors that are missing, unexpected or misshapen.
    """
    backbone = EmptyQwen25VL(ReleasedConfig(config).qwen, _dtype(state_dict))
    model = Qwen25VL(backbone=backbone, learning_rates=ALL_PARTS)
    fill_parts(state_dict, qwen=model.qwen)
    return model


def load_spatial_mllm(config: dict[str, Any], state_dict: Mapping[str, Tensor]) -> SpatialMLLM:
    """Spatial-MLLM v1.1 with these weights, in their dtype; all of it is trainable.

    Args:
        config: {"qwen", "spatial_config", "connector_config", "vggt_aggregator"}, or a released config.json.
        state_dict: as for `load_qwen25_vl`, with `spatial_encoder.vggt_model.…` and `connector.…`; VGGT's heads,
            which this model has no use for, may be absent or present.

    Raises:
        InputError: listing tensors that are missing, unexpected or misshapen.
    """
    released, dtype = ReleasedConfig(config), _dtype(state_dict)
    vggt = empty_vggt(released.aggregator, dtype)
    model = SpatialMLLM(
        backbone=EmptyQwen25VL(released.qwen, dtype),
        geometry=lambda: VGGTEncoder(vggt, released.layer),
        learning_rates=ALL_PARTS,
    )
    assert isinstance(model.fusion, AddFusion)
    fill_parts(state_dict, qwen=model.qwen, vggt=vggt, connector=model.fusion.connector)
    return model


def _dtype(tensors: Mapping[str, Tensor]) -> torch.dtype:
    return next((tensor.dtype for tensor in tensors.values()), torch.float32)
