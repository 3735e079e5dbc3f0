"""Released models with more parts than their backbone: how a folder of one is told, and which class loads it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from itertools import chain
from typing import Any, NamedTuple

from zoo.backbones.official_names import (
    GEOVR_TRAINING,
    QWEN3,
    QWEN25,
    QWEN35,
    SPATIAL_MLLM,
    STACK,
    STACK_QWEN25,
    STACK_QWEN25_SECOND_NAMES,
    STACK_VGGT,
    VG_LLM,
    VG_LLM_FIRST,
)

Config = Mapping[str, Any]  # content of a config.json


def is_spatial_mllm(config: Config) -> bool:
    """Return whether a config.json is of a Spatial-MLLM."""
    return "spatial" in str(config.get("model_type"))


def is_vg_llm(config: Config) -> bool:
    """Return whether a config.json is of a VG-LLM with its geometry encoder, in either layout."""
    has_encoder = config.get("use_geometry_encoder") or config.get("use_vggt_feature")
    return bool(has_encoder) and config.get("model_type") == QWEN25 and "geometry_fusion_layers" not in config


def is_spatial_stack(config: Config) -> bool:
    """Return whether a config.json is of a SpatialStack with its geometry encoder, on Qwen3.5."""
    return bool(config.get("use_geometry_encoder")) and config.get("model_type") == QWEN35


def is_spatial_stack_qwen25(config: Config) -> bool:
    """Return whether a config.json is of a SpatialStack with its geometry encoder, on Qwen2.5-VL."""
    has_encoder = config.get("use_geometry_encoder") and "geometry_fusion_layers" in config
    return bool(has_encoder) and config.get("model_type") == QWEN25


class FusedModel(NamedTuple):
    """A released model with more parts than its backbone.

    Attributes:
        title: Its name.
        loader: The class that loads it.
        family: Of its backbone.
        is_config: Whether a config.json is of it.
        prefixes: Of the official names of its other parts.
    """

    title: str
    loader: str
    family: str
    is_config: Callable[[Config], bool]
    prefixes: tuple[str, ...]


STACK_QWEN25_NAMES = (STACK_QWEN25, *STACK_QWEN25_SECOND_NAMES)
FUSED = (
    FusedModel("Spatial-MLLM", "PretrainedSpatialMLLM", QWEN25, is_spatial_mllm, tuple(SPATIAL_MLLM)),
    FusedModel(
        "SpatialStack", "PretrainedSpatialStackQwen25", QWEN25, is_spatial_stack_qwen25, STACK_QWEN25_NAMES
    ),  # before VG-LLM, whose name of the encoder it shares
    FusedModel("VG-LLM", "PretrainedVGLLM", QWEN25, is_vg_llm, (*VG_LLM, *VG_LLM_FIRST)),
    FusedModel("SpatialStack", "PretrainedSpatialStack", QWEN35, is_spatial_stack, (STACK_VGGT, STACK)),
    FusedModel("GeoVR", "PretrainedGeoVR", QWEN3, lambda config: False, GEOVR_TRAINING),
)


def find_fused(config: Config, names: Collection[str], family: str) -> FusedModel | None:
    """Return the fused model that a folder holds: by its config.json, else by the names of its tensors.

    Args:
        config: Content of its config.json.
        names: Of its tensors; none for a model that is built by its shapes.
        family: Of the backbone, as which its tensors are named.
    """
    by_config = (fused for fused in FUSED if fused.is_config(config))
    own = (fused for fused in FUSED if fused.family == family)
    by_names = (fused for fused in own if any(name.startswith(fused.prefixes) for name in names))
    return next(chain(by_config, by_names), None)
