"""Spatial-MLLM (arXiv 2505.23747): Qwen2.5-VL whose 2D tokens get the 3D tokens of VGGT, through a connector.

Published: `Diankun/Spatial-MLLM-v1.1-Instruct-135K` and `-820K`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cached_property, partial
from typing import Any

from zoo.backbones.base import AttentionImplementation, DType, License
from zoo.backbones.pretrained import VGGT_MODEL, PretrainedQwen25VL, config_errors
from zoo.checkpoints.from_tensors import model_from_tensors
from zoo.errors import InputError
from zoo.fusions.base import Fusion
from zoo.fusions.entrance import AddFusion
from zoo.geometry.base import GeometryEncoder
from zoo.geometry.dataset_geometry import DatasetGeometry
from zoo.geometry.vggt_encoder import VGGTEncoder
from zoo.model import SpatialVLM
from zoo.published.release import VGGT_SIZES, Release, ReleasedGeometry, aggregator_of
from zoo.tasks.video_qa import VideoQATask
from zoo.weights.load import Layout, Tensors

__all__ = ["SpatialMLLM", "PretrainedSpatialMLLM", "load_spatial_mllm"]

LAYOUT: Layout = {"spatial_encoder.vggt_model.": VGGT_MODEL, "connector.": "fusion.connector."}
CONNECTOR_TYPE = "mlp_add"
V1_CONNECTOR = "vggt_embedding_merger."


class SpatialMLLM(VideoQATask):
    """Spatial-MLLM (arXiv 2505.23747): 3D tokens pass a connector and are added to the 2D tokens.

    Args:
        geometry: Encoder of the 3D tokens. VGGT in the paper. The default uses the dataset's rays and points.
        fusion: `AddFusion`, or another one.
        parts: The other arguments of `VideoQATask`.
    """

    def __init__(
        self,
        geometry: Callable[[], GeometryEncoder] = DatasetGeometry,
        fusion: Callable[[int, int], Fusion] = AddFusion,
        **parts: Any,
    ) -> None:
        super().__init__(geometry=geometry, fusion=fusion, **parts)


class PretrainedSpatialMLLM(Release, PretrainedQwen25VL):
    """A released Spatial-MLLM v1.1: Qwen2.5-VL, with its VGGT and connector for a model that combines them.

    Args:
        path: A hub id (`Diankun/Spatial-MLLM-v1.1-Instruct-135K`, `-820K`) or a local folder with config,
            safetensors and processor.
        attn_implementation: The attention backend of transformers.
        dtype: Dtype of the weights.
    """

    title, released = "Spatial-MLLM", "Diankun/Spatial-MLLM-v1.1-Instruct-135K"
    licensed = License(
        "`Diankun/Spatial-MLLM-v1.1-Instruct-135K`, `-820K`",
        "unknown (the code is MIT). Made of Qwen2.5-VL-3B and VGGT-1B, both non-commercial",
    )
    architecture = "SpatialMLLMForConditionalGeneration"
    released_fusions = (AddFusion,)
    prefixes, stated = tuple(LAYOUT), tuple(VGGT_SIZES)
    config_keys = (*Release.config_keys, "spatial_config", "connector_config")
    known_configs = {
        f"Spatial-MLLM-v1.1-Instruct-{size}": ("Qwen2.5-VL-3B-Instruct", {"model_type": "spatial-mllm"})
        for size in ("135K", "820K")
    }
    # by its published code, v1.0 has VGGT under `vggt.`, and another RMSNorm and MLP after v1.1's connector (with the
    # patches of the second frame after the first frame's)
    refused = {
        V1_CONNECTOR: f"Spatial-MLLM v1.0 ({V1_CONNECTOR}*): its connector is another one, of two MLPs, for which "
        f"there are no published numbers to check a port against; take {released}"
    }

    def __init__(
        self, path: str = released, attn_implementation: AttentionImplementation = "sdpa", dtype: DType = "bfloat16"
    ):
        super().__init__(path, attn_implementation, dtype)

    @classmethod
    def describes(cls, config: Mapping[str, Any]) -> bool:
        return "spatial" in str(config.get("model_type"))

    @cached_property
    def released_geometry(self) -> ReleasedGeometry:
        with config_errors(self.folder):
            return geometry_of(self.settings)

    @classmethod
    def fusion_layout(cls, model: SpatialVLM) -> Layout:
        return LAYOUT

    @classmethod
    def fixed_options(cls, model: SpatialVLM) -> dict[str, Any]:
        return {"temporal_merge": "concat"}

    @classmethod
    def departures(cls, model: SpatialVLM) -> list[str]:
        encoder: Any = model.geometry and model.geometry.meta_encoder
        reference = getattr(encoder, "reference", "first")
        return super().departures(model) + ([] if reference == "first" else [f"reference: {reference}"])

    @classmethod
    def fusion_settings(cls, model: SpatialVLM, source: Mapping[str, Any]) -> dict[str, Any]:
        geometry = model.geometry
        assert isinstance(geometry, VGGTEncoder)
        aggregator = aggregator_of(geometry)
        connector = {"connector_type": CONNECTOR_TYPE, "spatial_embeds_layer_idx": geometry.layers[0]}
        return {
            "model_type": "spatial-mllm",
            "spatial_config": source.get("spatial_config", {}) | {name: aggregator[name] for name in VGGT_SIZES},
            "connector_config": source.get("connector_config", {}) | connector,
        }


def geometry_of(config: Mapping[str, Any]) -> ReleasedGeometry:
    """Return the parts of a Spatial-MLLM v1.1 beside its backbone.

    Args:
        config: Its config.json, with the arguments of an unusual `Aggregator` under `vggt_aggregator`.

    Raises:
        InputError: The connector is not the published one.
    """
    spatial, connector = config.get("spatial_config") or {}, config.get("connector_config") or {}
    kind = connector.get("connector_type", CONNECTOR_TYPE)
    if kind != CONNECTOR_TYPE:
        raise InputError(f"a connector of type {kind}: only the published {CONNECTOR_TYPE} is known")
    sizes = {name: spatial.get(name, default) for name, default in VGGT_SIZES.items()}
    aggregator = sizes | (config.get("vggt_aggregator") or {})
    layer = int(connector.get("spatial_embeds_layer_idx", -1))
    return ReleasedGeometry(LAYOUT, aggregator, (layer,), partial(AddFusion))


def load_spatial_mllm(config: dict[str, Any], state_dict: Tensors) -> SpatialVLM:
    """Return a Spatial-MLLM v1.1 with these weights, in their dtype. All parameters are trainable.

    Args:
        config: {"qwen", "spatial_config", "connector_config", "vggt_aggregator"}, or a released config.json.
        state_dict: Tensors as for `load_qwen25_vl`, with `spatial_encoder.vggt_model.…` and `connector.…`. VGGT's
            heads, which this model does not use, may be absent or present.

    Raises:
        InputError: Tensors are missing, unexpected or of another shape.
    """
    return model_from_tensors(PretrainedSpatialMLLM, config, geometry_of(config), state_dict)
