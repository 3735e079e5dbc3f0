"""Spatial-MLLM from official weights: in memory, or a released folder that is read shard by shard."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration
from transformers import Qwen2_5_VLProcessor as Processor

from zoo.backbone import AttentionImplementation, Backbone, DType
from zoo.checkpoints.config import ReleasedConfig
from zoo.checkpoints.names import OFFICIAL_CONNECTOR, OFFICIAL_VGGT
from zoo.checkpoints.parts import empty_qwen, empty_vggt, fill_parts
from zoo.folders import find_folder, read_config
from zoo.fusions import AddFusion
from zoo.geometry.base import GeometryEncoder
from zoo.geometry.vggt import VGGT
from zoo.geometry.vggt.camera_head import CameraHead
from zoo.geometry.vggt_encoder import VGGTEncoder, camera_head_of
from zoo.optim import LearningRates
from zoo.qwen25_vl import Qwen25VL
from zoo.spatial_mllm import SpatialMLLM
from zoo.weights import Under, fill, open_weights

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


class PretrainedSpatialMLLM(Backbone):
    """A released Spatial-MLLM v1.1: Qwen2.5-VL, and with it VGGT and the connector for a model that fuses them.

    Args:
        path: a hub id (`Diankun/Spatial-MLLM-v1.1-Instruct-135K`, `-820K`) or a local folder with config,
            safetensors and processor.
        attn_implementation: the attention backend of transformers.
        dtype: the type in which the weights are kept.
    """

    pretrained = True

    def __init__(
        self,
        path: str = "Diankun/Spatial-MLLM-v1.1-Instruct-135K",
        attn_implementation: AttentionImplementation = "sdpa",
        dtype: DType = "bfloat16",
    ):
        super().__init__(attn_implementation, dtype)
        self.path = path

    @cached_property
    def folder(self) -> Path:
        return find_folder(self.path, "Diankun/Spatial-MLLM-v1.1-Instruct-135K")

    @cached_property
    def config(self) -> ReleasedConfig:
        return ReleasedConfig(read_config(self.folder))

    @cached_property
    def tensors(self) -> Mapping[str, Tensor]:
        return open_weights(self.folder)

    def load(self) -> tuple[Qwen2_5_VLForConditionalGeneration, Processor]:
        self.config.qwen._attn_implementation = self.attn_implementation
        model = empty_qwen(self.config.qwen, self.dtype)
        model.config.name_or_path = str(self.folder)
        fill_parts(self.tensors, qwen=model, skip=(OFFICIAL_VGGT, OFFICIAL_CONNECTOR))
        return model, Processor.from_pretrained(self.folder)

    def geometry(self) -> GeometryEncoder:
        """The VGGT that the connector was trained on, with the layer that it reads."""
        weights = Under(self.tensors, OFFICIAL_VGGT)
        vggt = VGGT.from_official({"aggregator": self.config.aggregator}, weights, dtype=self.dtype)
        return ReleasedVGGT(vggt, self.config.layer, weights)

    def fill(self, fusion: nn.Module) -> bool:
        """The connector's weights into an `AddFusion`; another fusion keeps its own."""
        if not isinstance(fusion, AddFusion):
            return False
        fill(fusion.connector.state_dict(), Under(self.tensors, OFFICIAL_CONNECTOR), what="connector")
        return True


class ReleasedVGGT(VGGTEncoder):
    """The VGGT of a released Spatial-MLLM, whose camera head is loaded if cameras are wanted."""

    def __init__(self, vggt: VGGT, layer: int, weights: Mapping[str, Tensor]):
        super().__init__(vggt, layer)
        self.weights = weights

    def load_camera_head(self) -> CameraHead:
        return camera_head_of(self.weights, self.width)
