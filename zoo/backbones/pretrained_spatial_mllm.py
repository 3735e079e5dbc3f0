"""Released folders of Spatial-MLLM as backbones, with the VGGT and the connector in them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from zoo.backbones.loader import AttentionImplementation, DType
from zoo.backbones.official_names import FUSED, OFFICIAL_CONNECTOR, OFFICIAL_VGGT
from zoo.backbones.pretrained_qwen import PretrainedQwen25VL, config_errors, is_spatial_mllm
from zoo.backbones.released_configs import ReleasedConfig
from zoo.fusions import AddFusion
from zoo.geometry.base import GeometryEncoder
from zoo.geometry.transformer_blocks import layer_index
from zoo.geometry.vggt import VGGT
from zoo.geometry.vggt_encoder import VGGTEncoder
from zoo.weights.deferred import load_or_defer
from zoo.weights.filling import TensorsOf, load_into
from zoo.weights.lazy_tensors import PrefixView, Tensors


class PretrainedSpatialMLLM(PretrainedQwen25VL):
    """A released Spatial-MLLM v1.1: Qwen2.5-VL, and its VGGT and connector for a model that fuses them.

    Args:
        path: A hub id (`Diankun/Spatial-MLLM-v1.1-Instruct-135K`, `-820K`) or a local folder with config,
            safetensors and processor.
        attn_implementation: The attention backend of transformers.
        dtype: The type in which the weights are kept.
    """

    released = "Diankun/Spatial-MLLM-v1.1-Instruct-135K"
    skip = FUSED

    def __init__(
        self, path: str = released, attn_implementation: AttentionImplementation = "sdpa", dtype: DType = "bfloat16"
    ):
        super().__init__(path, attn_implementation, dtype)

    @classmethod
    def reads(cls, config: Mapping[str, Any]) -> bool:
        return is_spatial_mllm(config)

    @classmethod
    def released_parts(cls, path: str) -> dict[str, Any]:
        return {"backbone": cls(path), "fusion": AddFusion}

    def load_geometry(self) -> GeometryEncoder:
        """Return the VGGT that the connector was trained on, with the layer that it reads."""
        with config_errors(self.folder):
            vggt = load_vggt(self.config, self.tensors, self.dtype)
            layer_index(self.config.layer, vggt.aggregator.depth)  # the encoder's own error blames an option
        return VGGTEncoder(vggt, (self.config.layer,), PrefixView(self.tensors, OFFICIAL_VGGT))

    def load_fusion(self, fusion: nn.Module) -> bool:
        """Copy the connector's weights into an `AddFusion`; another fusion keeps its own."""
        return load_connector(fusion, self.tensors)


def load_vggt(config: ReleasedConfig, tensors: Tensors, dtype: torch.dtype) -> VGGT:
    """Return the VGGT of a Spatial-MLLM, without heads."""
    return VGGT.from_official({"aggregator": config.aggregator}, PrefixView(tensors, OFFICIAL_VGGT), dtype)


def load_connector(fusion: nn.Module | None, tensors: Tensors) -> bool:
    """Copy the connector of a Spatial-MLLM into an `AddFusion`; return False for another fusion."""
    if not isinstance(fusion, AddFusion):
        return False
    connector, weights = fusion.connector, PrefixView(tensors, OFFICIAL_CONNECTOR)
    load_or_defer(connector, weights, lambda: load_into(TensorsOf(connector), weights, what="connector"))
    return True
