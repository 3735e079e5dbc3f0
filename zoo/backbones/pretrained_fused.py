"""Released folders of models with a geometry encoder as backbones, with the VGGT and the fusion in them."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Collection, Mapping
from functools import cached_property
from typing import Any

from torch import nn

from zoo.backbones.base import AttentionImplementation, DType
from zoo.backbones.fused_models import is_spatial_mllm, is_spatial_stack, is_spatial_stack_qwen25, is_vg_llm
from zoo.backbones.official_names import STACK_QWEN25_SECOND_NAMES, STACK_SECOND_NAMES, Layout
from zoo.backbones.pretrained_qwen import PretrainedQwen25VL, PretrainedQwen35, PretrainedQwenVL, config_errors
from zoo.backbones.released_geometry import (
    ReleasedGeometry,
    spatial_mllm_geometry,
    spatial_stack_geometry,
    vg_llm_geometry,
)
from zoo.geometry.base import GeometryEncoder
from zoo.geometry.layers import layer_index
from zoo.weights.lazy_tensors import FirstNames, Tensors

VGGT_DEPTH = 24  # layers of the released aggregator


class PretrainedFused(PretrainedQwenVL):
    """A released backbone with its geometry encoder and its fusion, for a model that fuses them."""

    @property
    @abstractmethod
    def released_geometry(self) -> ReleasedGeometry | None:
        """The parts beside the backbone; None in a model that was saved without."""

    @property
    def tensor_names(self) -> Collection[str]:
        """Official names of the tensors; none for a model that is built by its shapes, without its folder."""
        return () if self.lacks_folder else self.tensors

    @property
    def layout(self) -> Layout:  # type: ignore[override]
        return {} if self.released_geometry is None else self.released_geometry.layout

    @property
    def skip(self) -> tuple[str, ...]:  # type: ignore[override]
        return tuple(self.layout)

    @classmethod
    def released_parts(cls, path: str) -> dict[str, Any]:
        loader = cls(path)  # type: ignore[call-arg]
        parts = loader.released_geometry
        return {"backbone": loader, **({} if parts is None else {"fusion": parts.fusion})}

    def load_geometry(self) -> GeometryEncoder | None:
        """Return the VGGT that the fusion was trained on, with the layers that it reads."""
        if (parts := self.released_geometry) is None:
            return None
        with config_errors(self.folder):
            for layer in parts.layers:  # the encoder's own error blames an option
                layer_index(layer, int(parts.aggregator.get("depth", VGGT_DEPTH)))
            return parts.load_encoder(self.tensors, self.dtype)

    def fit_fusion(self, fusion: nn.Module) -> None:
        if (parts := self.released_geometry) is not None:
            parts.fit_fusion(fusion)

    def load_fusion(self, fusion: nn.Module) -> bool:
        """Copy the released weights into a fusion of the released class; another fusion keeps its own."""
        parts = self.released_geometry
        return parts is not None and parts.load_fusion(fusion, self.tensors)


class PretrainedSpatialMLLM(PretrainedFused, PretrainedQwen25VL):
    """A released Spatial-MLLM v1.1: Qwen2.5-VL, and its VGGT and connector for a model that fuses them.

    Args:
        path: A hub id (`Diankun/Spatial-MLLM-v1.1-Instruct-135K`, `-820K`) or a local folder with config,
            safetensors and processor.
        attn_implementation: The attention backend of transformers.
        dtype: The type in which the weights are kept.
    """

    released, released_fusions = "Diankun/Spatial-MLLM-v1.1-Instruct-135K", ("AddFusion",)

    def __init__(
        self, path: str = released, attn_implementation: AttentionImplementation = "sdpa", dtype: DType = "bfloat16"
    ):
        super().__init__(path, attn_implementation, dtype)

    @classmethod
    def reads(cls, config: Mapping[str, Any]) -> bool:
        return is_spatial_mllm(config)

    @cached_property
    def released_geometry(self) -> ReleasedGeometry:
        return spatial_mllm_geometry(self.config.aggregator, self.config.layer)


class PretrainedVGLLM(PretrainedFused, PretrainedQwen25VL):
    """A released VG-LLM: Qwen2.5-VL, and its VGGT and merger for a model that fuses them.

    Args:
        path: A hub id (`zd11024/vgllm-qa-vggt-4b`, `zd11024/vgllm-qa-vggt-8b`) or a local folder with config,
            safetensors and processor; of the current layout of names, or of the first release's.
        attn_implementation: The attention backend of transformers.
        dtype: The type in which the weights are kept.
    """

    released, released_fusions = "zd11024/vgllm-qa-vggt-4b", ("PatchMergerFusion",)

    def __init__(
        self, path: str = released, attn_implementation: AttentionImplementation = "sdpa", dtype: DType = "bfloat16"
    ):
        super().__init__(path, attn_implementation, dtype)

    @classmethod
    def reads(cls, config: Mapping[str, Any]) -> bool:
        return is_vg_llm(config)

    @cached_property
    def released_geometry(self) -> ReleasedGeometry | None:
        return vg_llm_geometry(self.settings, self.tensor_names)


class PretrainedSpatialStack(PretrainedFused, PretrainedQwen35):
    """A released SpatialStack: Qwen3.5, and its VGGT and connectors for a model that fuses them.

    Args:
        path: A hub id (`Journey9ni/SpatialStack-Qwen3.5-4B`) or a local folder with config, safetensors and processor.
        attn_implementation: The attention backend of transformers, of the layers of full attention.
        dtype: The type in which the weights are kept.
    """

    released, released_fusions = "Journey9ni/SpatialStack-Qwen3.5-4B", ("StackFusion", "PatchMergerFusion")

    def __init__(
        self, path: str = released, attn_implementation: AttentionImplementation = "sdpa", dtype: DType = "bfloat16"
    ):
        super().__init__(path, attn_implementation, dtype)

    @classmethod
    def reads(cls, config: Mapping[str, Any]) -> bool:
        return is_spatial_stack(config)

    @cached_property
    def tensors(self) -> Tensors:
        return FirstNames(super().tensors, STACK_SECOND_NAMES)

    @cached_property
    def released_geometry(self) -> ReleasedGeometry | None:
        return spatial_stack_geometry(self.settings, self.tensor_names, is_qwen25=False)


class PretrainedSpatialStackQwen25(PretrainedFused, PretrainedQwen25VL):
    """A SpatialStack on Qwen2.5-VL: the backbone, and its VGGT and connectors for a model that fuses them.

    Args:
        path: A hub id (`Journey9ni/SpatialStack-Qwen2.5-4B`) or a local folder with config, safetensors and processor.
        attn_implementation: The attention backend of transformers.
        dtype: The type in which the weights are kept.
    """

    released, released_fusions = "Journey9ni/SpatialStack-Qwen2.5-4B", ("StackFusion", "PatchMergerFusion")

    def __init__(
        self, path: str = released, attn_implementation: AttentionImplementation = "sdpa", dtype: DType = "bfloat16"
    ):
        super().__init__(path, attn_implementation, dtype)

    @classmethod
    def reads(cls, config: Mapping[str, Any]) -> bool:
        return is_spatial_stack_qwen25(config)

    @cached_property
    def tensors(self) -> Tensors:
        return FirstNames(super().tensors, STACK_QWEN25_SECOND_NAMES)

    @cached_property
    def released_geometry(self) -> ReleasedGeometry | None:
        return spatial_stack_geometry(self.settings, self.tensor_names, is_qwen25=True)
