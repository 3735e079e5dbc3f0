"""The official layout of a model's geometry encoder and fusion, if a released model has the same parts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from zoo.backbones.official_names import (
    QWEN25,
    QWEN35,
    SPATIAL_MLLM,
    STACK,
    STACK_QWEN25,
    STACK_VGGT,
    VG_LLM,
    VG_LLM_FIRST,
    VGGT_MODEL,
    Layout,
)
from zoo.backbones.released_geometry import stack_layout
from zoo.fusions import AddFusion, PatchMergerFusion, StackFusion
from zoo.fusions.deep import HIDDEN
from zoo.geometry.vggt_encoder import VGGTEncoder

if TYPE_CHECKING:
    from zoo.model import SpatialVLM

OFFICIAL_NORM = {QWEN25: "rms", QWEN35: "layer"}  # of a patch, by the family: see `PatchMerger`


def official_layout(model: SpatialVLM) -> Layout | None:
    """Return the layout of a model's encoder and fusion, empty without a fusion; None if no released model has them."""
    fusion, encoder = model.fusion, model.geometry
    layout = _layout_of(model)
    if fusion is None or (isinstance(encoder, VGGTEncoder) and type(fusion) is StackFusion):
        return layout
    return layout if isinstance(encoder, VGGTEncoder) and encoder.num_layers == 1 else None


def _layout_of(model: SpatialVLM) -> Layout | None:
    """Return the layout by the fusion alone."""
    fusion, family = model.fusion, model.backbone.vlm.config.model_type
    if fusion is None:
        return {}
    if family == QWEN25 and type(fusion) is AddFusion:
        return SPATIAL_MLLM
    if family == QWEN25 and type(fusion) is PatchMergerFusion:
        return VG_LLM_FIRST if model.loader.layout == VG_LLM_FIRST else VG_LLM
    if family == QWEN25 and type(fusion) is StackFusion:
        return {"geometry_encoder.vggt.": VGGT_MODEL} | stack_layout(fusion.decoder_layers, STACK_QWEN25)
    if family == QWEN35 and type(fusion) is PatchMergerFusion:
        return {STACK_VGGT: VGGT_MODEL, "model.geometry_merger.": "fusion.merger."}
    if family == QWEN35 and type(fusion) is StackFusion:
        return {STACK_VGGT: VGGT_MODEL} | stack_layout(fusion.decoder_layers, STACK)
    return None


def unofficial_fusion(model: SpatialVLM) -> list[str]:
    """Return what of a model's encoder and fusion no released model has."""
    fusion: Any = model.fusion
    family = model.backbone.vlm.config.model_type
    encoder: Any = None if model.geometry is None else model.geometry.meta_encoder
    found = [] if _layout_of(model) is not None else [type(fusion).__name__]
    if encoder is not None and (fusion is None or not isinstance(encoder, VGGTEncoder)):
        found.append(type(encoder).__name__)  # of cameras alone, or of other 3D tokens
    if fusion is None or not isinstance(encoder, VGGTEncoder):
        return found
    if encoder.num_layers > 1 and type(fusion) is not StackFusion:
        found.append(f"geometry of {encoder.num_layers} layers")
    elif (
        type(fusion) is PatchMergerFusion
        and family != QWEN35  # whose config names the layer
        and encoder.layer_numbers != [encoder.vggt.aggregator.depth - 2]
    ):
        found.append(f"geometry of layer {encoder.layers[0]}, not of the one before the last")
    official: dict[str, Any] = {"active_branches": "both"}
    if type(fusion) is AddFusion:
        official["temporal_merge"] = "concat"
        if encoder.reference != "first":
            found.append(f"reference: {encoder.reference}")
    if type(fusion) in (PatchMergerFusion, StackFusion):
        official["norm"] = OFFICIAL_NORM.get(family, fusion.norm)
    if type(fusion) is StackFusion:
        official["hidden"] = HIDDEN  # config.json has no setting for it
    values = {name: getattr(fusion, name) for name in official}
    return found + [f"{name}: {value}" for name, value in values.items() if value != official[name]]
