"""Geometry encoder and fusion of released models: what their config describes, and where the file has the tensors.

`layout` names, for each prefix of official names, the prefix of the same tensors in a `SpatialVLM`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn

from zoo.backbones.official_names import (
    FUSION,
    SPATIAL_MLLM,
    STACK,
    STACK_QWEN25,
    VG_LLM,
    VG_LLM_FIRST,
    VGGT_MODEL,
    Layout,
)
from zoo.errors import InputError
from zoo.fusions import AddFusion, PatchMergerFusion, StackFusion
from zoo.fusions.deep import HIDDEN, PatchNorm
from zoo.geometry.vggt import VGGT
from zoo.geometry.vggt_encoder import ReferenceFrame, VGGTEncoder
from zoo.weights.deferred import load_or_defer
from zoo.weights.filling import TensorsOf, load_into
from zoo.weights.lazy_tensors import PrefixView, Tensors

VGGT_SIZES = {"img_size": 518, "patch_size": 14, "embed_dim": 1024}
STACK_ADD = "deepstack_language_add"
# the published scripts write these into config.json
STACK_KEYS = (
    *("geometry_encoder_path", "geometry_fusion_layers", "geometry_encoder_layers", "include_camera_token"),
    *("pos_encoding_type", "vision_language_fusion_layers"),
)
GEOMETRY_KEYS = (
    *("use_geometry_encoder", "geometry_encoder_type", "reference_frame", "feature_fusion_method"),
    *("fusion_num_layers", "geometry_merger_type", "geometry_merger_hidden_dim", "fusion_attention_heads"),
    *("fusion_dropout", *STACK_KEYS),
    *("use_vggt_feature", "use_dense_supervision", "vggt_merger_hidden_dim"),  # VG-LLM's first release
)
SUPPORTED = {  # of what the published code offers
    "geometry_encoder_type": ("vggt",),
    "geometry_merger_type": ("mlp",),
    "include_camera_token": (False,),
    "vision_language_fusion_layers": (None,),
}


@dataclass(frozen=True)
class ReleasedGeometry:
    """A released model's parts beside its backbone.

    Attributes:
        layout: Prefixes of official names, and of the same tensors in a `SpatialVLM`.
        aggregator: Arguments of VGGT's `Aggregator`.
        layers: Of the aggregator whose outputs are the 3D tokens.
        fusion: Builds the fusion, without its weights, from the decoder's width and the geometry's.
        reference: The frame that is VGGT's world.
    """

    layout: Layout
    aggregator: Mapping[str, Any]
    layers: tuple[int, ...]
    fusion: partial[Any]
    reference: ReferenceFrame = "first"

    @property
    def prefixes(self) -> tuple[str, ...]:
        """Of the official names of these parts."""
        return tuple(self.layout)

    def load_encoder(self, tensors: Tensors, dtype: torch.dtype) -> VGGTEncoder:
        """Return the VGGT that the fusion was trained on, without heads."""
        prefix = next(theirs for theirs, ours in self.layout.items() if ours == VGGT_MODEL)
        weights = PrefixView(tensors, prefix)
        vggt = VGGT.from_official({"aggregator": dict(self.aggregator)}, weights, dtype)
        return VGGTEncoder(vggt, self.layers, weights, reference=self.reference)

    def fit_fusion(self, fusion: Any) -> None:
        """Take the norm of a `StackFusion` from the release where it is open, see `BackboneLoader.fit_fusion`."""
        if type(fusion) is not self.fusion.func or not isinstance(fusion, StackFusion):
            return
        if fusion.decoder_layers != (layers := self.fusion.keywords["decoder_layers"]):
            raise InputError(
                f"--model.fusion.decoder_layers {fusion.decoder_layers}: the released connectors are of the decoder's "
                f"layers {layers}, name these"
            )
        fusion.norm = fusion.norm or self.fusion.keywords["norm"]

    def load_fusion(self, fusion: nn.Module | None, tensors: Tensors) -> bool:
        """Copy the weights into a fusion of the released class; return False for another one."""
        if fusion is None or type(fusion) is not self.fusion.func:
            return False
        for theirs, ours in self.layout.items():
            if ours.startswith(FUSION):
                part, weights = fusion.get_submodule(ours.removeprefix(FUSION)[:-1]), PrefixView(tensors, theirs)
                load_or_defer(part, weights, partial(load_into, TensorsOf(part), weights, what="fusion"))
        return True


def spatial_mllm_geometry(aggregator: Mapping[str, Any], layer: int) -> ReleasedGeometry:
    """Return the parts of a Spatial-MLLM v1.1."""
    return ReleasedGeometry(SPATIAL_MLLM, aggregator, (layer,), partial(AddFusion))


def vg_llm_geometry(config: Mapping[str, Any], names: Collection[str]) -> ReleasedGeometry | None:
    """Return the parts of a VG-LLM; None if it was saved without geometry.

    The published code reads the first release's config as one without geometry, and runs a plain Qwen2.5-VL without an
    error. Here the names of the tensors tell both layouts apart, and the config where there are none of either.

    Args:
        config: Its config.json, and under `vggt_aggregator` the arguments of an unusual `Aggregator`.
        names: Official names of its tensors; of a model that is built by its shapes alone, none.

    Raises:
        InputError: Another encoder, merger or fusion than the released models have.
    """
    has_first, has_current = (any(name.startswith(tuple(each)) for name in names) for each in (VG_LLM_FIRST, VG_LLM))
    is_first = has_first or (bool(config.get("use_vggt_feature")) and not has_current)
    if not config.get("use_vggt_feature" if is_first else "use_geometry_encoder", is_first):
        return None
    _refuse_other_parts(config, ("add",))
    hidden = config.get("vggt_merger_hidden_dim" if is_first else "geometry_merger_hidden_dim", HIDDEN)
    return ReleasedGeometry(
        VG_LLM_FIRST if is_first else VG_LLM,
        _aggregator(config),
        (-2,),
        partial(PatchMergerFusion, hidden=hidden),
        config.get("reference_frame", "first"),
    )


def spatial_stack_geometry(
    config: Mapping[str, Any], names: Collection[str], *, is_qwen25: bool
) -> ReleasedGeometry | None:
    """Return the parts of a SpatialStack; None if it was saved without geometry.

    Args:
        config: Its config.json, and under `vggt_aggregator` the arguments of an unusual `Aggregator`.
        names: Official names of its tensors, which tell the norm: LayerNorm has a bias. Of a model that is built by its
            shapes alone, none: then the norm is that of the released model.
        is_qwen25: Whether it is the variant on Qwen2.5-VL.

    Raises:
        InputError: Another encoder, merger or fusion than the released models have.
    """
    if not config.get("use_geometry_encoder"):
        return None
    _refuse_other_parts(config, (STACK_ADD, "add"))
    has_bias = any(name.endswith(("geo_ln.bias", "geometry_merger.ln_q.bias")) for name in names)
    norm: PatchNorm = "layer" if has_bias or not (names or is_qwen25) else "rms"
    reference, start = config.get("reference_frame", "first"), "" if is_qwen25 else "model."
    layout = {f"{start}geometry_encoder.vggt.": VGGT_MODEL}
    if config["feature_fusion_method"] == "add":
        layout[f"{start}geometry_merger."] = f"{FUSION}merger."
        fusion: Any = partial(PatchMergerFusion, hidden=config.get("geometry_merger_hidden_dim", HIDDEN), norm=norm)
        layers = config.get("geometry_encoder_layers") or [-2]  # of which the published code takes the last
        return ReleasedGeometry(layout, _aggregator(config), (layers[-1],), fusion, reference)
    decoder_layers, encoder_layers = config["geometry_fusion_layers"], config["geometry_encoder_layers"]
    layout |= stack_layout(decoder_layers, STACK_QWEN25 if is_qwen25 else STACK)
    fusion = partial(StackFusion, decoder_layers=list(decoder_layers), norm=norm)
    return ReleasedGeometry(layout, _aggregator(config), tuple(encoder_layers), fusion, reference)


def stack_layout(decoder_layers: Collection[int], prefix: str) -> dict[str, str]:
    """Return the layout of a `StackFusion`: the k-th connector of a decoder layer is `{layer}.{k}`."""
    seen: Counter[int] = Counter()
    layout = {}
    for number, layer in enumerate(decoder_layers):
        for theirs, ours in (("geo_ln", "ln_q"), ("geo_mlp", "mlp")):
            layout[f"{prefix}{layer}.{seen[layer]}.{theirs}."] = f"{FUSION}connectors.{number}.{ours}."
        seen[layer] += 1
    return layout


def _aggregator(config: Mapping[str, Any]) -> dict[str, Any]:
    return VGGT_SIZES | (config.get("vggt_aggregator") or {})


def _refuse_other_parts(config: Mapping[str, Any], fusions: tuple[str, ...]) -> None:
    for name, known in {"feature_fusion_method": fusions, **SUPPORTED}.items():
        if (value := config.get(name, known[0])) not in known:
            raise InputError(
                f"{name} {value!r} in the config: only {' or '.join(map(repr, known))} is supported, as released"
            )
