"""Reads a released model's config.json: the Qwen-VL, its geometry encoder and its fusion.

Spatial-MLLM, VG-LLM, SpatialStack, GeoThinker and GeoVR are Qwen-VL models with more parts. The config.json tells
which model it is, or the tensor names if the config does not.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import torch
import yaml
from torch import nn
from transformers import Qwen2_5_VLConfig, Qwen3_5Config, Qwen3VLConfig

from zoo.backbones.official_names import (
    FUSION,
    GEOTHINKER_LAYERS,
    GEOVR_TRAINING,
    INTERACTION,
    QWEN3,
    QWEN25,
    QWEN35,
    SPATIAL_MLLM,
    STACK,
    STACK_QWEN25,
    STACK_QWEN25_SECOND_NAMES,
    STACK_VGGT,
    UNUSED,
    VG_LLM,
    VG_LLM_FIRST,
    VGGT_MODEL,
    Layout,
    geothinker_layout,
    stack_layout,
)
from zoo.errors import InputError
from zoo.fusions import AddFusion, GeoThinkerFusion, PatchMergerFusion, StackFusion
from zoo.fusions.base import HIDDEN, PatchNorm
from zoo.fusions.geothinker import interaction_layers
from zoo.geometry.vggt import VGGT
from zoo.geometry.vggt_encoder import ReferenceFrame, VGGTEncoder
from zoo.weights.load import ReleasedWeights, Tensors, TensorsUnder, load_weights

Config = Mapping[str, Any]  # content of a config.json
VGGT_SIZES = {"img_size": 518, "patch_size": 14, "embed_dim": 1024}
STACK_ADD = "deepstack_language_add"
# keys that the published scripts write into config.json
STACK_KEYS = (
    *("geometry_encoder_path", "geometry_fusion_layers", "geometry_encoder_layers", "include_camera_token"),
    *("pos_encoding_type", "vision_language_fusion_layers"),
)
SMI_KEYS = ("depart_smi_token", "smi_image_num", "smi_downsample_rate")
GEOTHINKER_KEYS = ("geo_cross_attn", "geo_inject_version", "geo_importance_gate", "geo_spatial_bias", *SMI_KEYS)
GEOMETRY_KEYS = (
    *("use_geometry_encoder", "geometry_encoder_type", "reference_frame", "feature_fusion_method"),
    *("fusion_num_layers", "geometry_merger_type", "geometry_merger_hidden_dim", "fusion_attention_heads"),
    *("fusion_dropout", *STACK_KEYS, *GEOTHINKER_KEYS, "use_qwenvl_loss"),
    *("use_vggt_feature", "use_dense_supervision", "vggt_merger_hidden_dim"),  # VG-LLM's first release
)
SUPPORTED = {  # supported values among those of the published code
    "geometry_encoder_type": ("vggt",),
    "geometry_merger_type": ("mlp",),
    "include_camera_token": (False,),
    "vision_language_fusion_layers": (None,),
}
SMI_VIEWS = 8  # views of a scene that keep all tokens; a constant in GeoThinker's code
SUPPORTED_GEOTHINKER = {
    "geo_inject_version": ("v2_flash", "v2"),  # they differ in the distance term alone
    "geo_spatial_bias": (False,),  # the distance term, which no script switches on
    "smi_image_num": (SMI_VIEWS,),
    "smi_downsample_rate": (2,),
}
GEOMETRY_PARTS = {"spatial_config", "connector_config", "vggt_aggregator", *GEOMETRY_KEYS}
OTHERS = {"model_type", "architectures", "auto_map", *GEOMETRY_PARTS}
CONNECTOR_TYPE = "mlp_add"
KNOWN = Path(__file__).parent / "released_configs.yaml"


# ---- Which model a folder holds --------------------------------------------------------------------------------------


def loader_of(config: Config) -> str | None:
    """Return the class of `zoo.backbones` that loads a folder with this config.json. None if there is none."""
    kind, has_encoder = str(config.get("model_type")), bool(config.get("use_geometry_encoder"))
    if "spatial" in kind:
        return "PretrainedSpatialMLLM"
    if kind == QWEN25:
        if config.get("geo_cross_attn") and has_encoder:
            return "PretrainedGeoThinker"
        if "geometry_fusion_layers" in config:
            return "PretrainedSpatialStackQwen25" if has_encoder else "PretrainedQwen25VL"
        is_vg_llm = has_encoder or config.get("use_vggt_feature")  # the latter key is from its first release
        return "PretrainedVGLLM" if is_vg_llm else "PretrainedQwen25VL"
    if kind == QWEN35 and has_encoder:
        return "PretrainedSpatialStack"
    if kind == QWEN3 and has_encoder and geothinker_settings(config).get("geo_cross_attn"):
        return "PretrainedGeoThinkerQwen3"
    # a mixture of experts is rejected when it is loaded
    return {QWEN3: "PretrainedQwen3VL", QWEN35: "PretrainedQwen35"}.get(kind.removesuffix("_moe"))


def is_unused(name: str) -> bool:
    """Whether a tensor of a fusion is one that no released model uses."""
    return name.startswith(UNUSED)


def geothinker_settings(config: Config) -> dict[str, Any]:
    """Return the settings of a GeoThinker. On Qwen3-VL some are in the decoder's part of its config.json."""
    return {**config.get("text_config", {}), **config}


class FusedModel(NamedTuple):
    """A released model with more parts than its backbone.

    Attributes:
        title: Name of the model.
        loader: Class that loads it.
        family: Family of its backbone.
        prefixes: Prefixes of the official names of its other parts.
    """

    title: str
    loader: str
    family: str
    prefixes: tuple[str, ...]


STACK_QWEN25_NAMES = (STACK_QWEN25, *STACK_QWEN25_SECOND_NAMES)
FUSED = (
    FusedModel("Spatial-MLLM", "PretrainedSpatialMLLM", QWEN25, tuple(SPATIAL_MLLM)),
    # before VG-LLM, because all use the same name for the encoder
    FusedModel("GeoThinker", "PretrainedGeoThinker", QWEN25, (f"{GEOTHINKER_LAYERS[QWEN25]}0{INTERACTION}",)),
    FusedModel("GeoThinker", "PretrainedGeoThinkerQwen3", QWEN3, (f"{GEOTHINKER_LAYERS[QWEN3]}0{INTERACTION}",)),
    FusedModel("SpatialStack", "PretrainedSpatialStackQwen25", QWEN25, STACK_QWEN25_NAMES),
    FusedModel("VG-LLM", "PretrainedVGLLM", QWEN25, (*VG_LLM, *VG_LLM_FIRST)),
    FusedModel("SpatialStack", "PretrainedSpatialStack", QWEN35, (STACK_VGGT, STACK)),
    FusedModel("GeoVR", "PretrainedGeoVR", QWEN3, GEOVR_TRAINING),
)


def find_fused(config: Config, names: Collection[str], family: str) -> FusedModel | None:
    """Return the fused model that a folder holds, by its config.json or else by its tensor names.

    There are no names for a model that is built by shapes only.
    """
    by_config = (fused for fused in FUSED if fused.loader == loader_of(config))
    own = (fused for fused in FUSED if fused.family == family)
    by_names = (fused for fused in own if any(name.startswith(fused.prefixes) for name in names))
    return next(chain(by_config, by_names), None)


# ---- Qwen-VL ---------------------------------------------------------------------------------------------------------


class ReleasedConfig:
    """The parts that the config of a Qwen2.5-VL or a Spatial-MLLM describes.

    Args:
        config: A released config.json, or {"qwen": Qwen2.5-VL's config.json, "spatial_config": ..., ...}.

    Attributes:
        qwen: Transformers' config of Qwen2.5-VL.
        aggregator: Arguments of VGGT's `Aggregator`.
        layer: Aggregator layer that the connector reads.

    Raises:
        InputError: The connector is not the published one.
    """

    def __init__(self, config: dict[str, Any]) -> None:
        settings = config.get("qwen", config)
        self.qwen = Qwen2_5_VLConfig(**{name: value for name, value in settings.items() if name not in OTHERS})
        spatial, connector = config.get("spatial_config") or {}, config.get("connector_config") or {}
        sizes = {name: spatial.get(name, default) for name, default in VGGT_SIZES.items()}
        self.aggregator: dict[str, Any] = sizes | (config.get("vggt_aggregator") or {})
        self.layer = int(connector.get("spatial_embeds_layer_idx", -1))
        kind = connector.get("connector_type", CONNECTOR_TYPE)
        if kind != CONNECTOR_TYPE:
            raise InputError(f"a connector of type {kind}: only the published {CONNECTOR_TYPE} is known")


def qwen3_config(config: dict[str, Any], source: str = "the config") -> Qwen3VLConfig:
    """Return transformers' config of a Qwen3-VL.

    Args:
        config: Its config.json.
        source: Where it was read from, for errors.

    Raises:
        InputError: MRoPE's sections do not add up to the frequencies of a head.
    """
    parts = {name: value for name, value in config.items() if name not in GEOMETRY_PARTS}
    text = {name: value for name, value in config.get("text_config", {}).items() if name not in GEOTHINKER_KEYS}
    found = Qwen3VLConfig.from_dict({**parts, "text_config": text})
    _check_sections(found.text_config, source)
    return found


def qwen3_5_config(config: dict[str, Any], source: str = "the config") -> Qwen3_5Config:
    """Return transformers' config of a Qwen3.5, see `qwen3_config`."""
    found = Qwen3_5Config.from_dict({name: value for name, value in config.items() if name not in GEOMETRY_PARTS})
    _check_sections(found.text_config, source)
    return found


def _check_sections(text: Any, source: str) -> None:
    sections, channels = list(text.rope_parameters["mrope_section"]), text.head_dim
    pairs = int(channels * text.rope_parameters.get("partial_rotary_factor", 1.0)) // 2
    taken = [len(range(axis, min(3 * count, pairs), 3)) for axis, count in enumerate(sections)]  # h and w alternate
    if len(sections) != 3 or sum(sections) != pairs or taken[1:] != sections[1:]:
        raise InputError(
            f"{source}: mrope_section {sections} does not share out the {pairs} frequencies of a head of "
            f"{channels} channels in turns: download it again"
        )


def known_config(path: str) -> dict[str, Any] | None:
    """Return the sizes in a released model's config.json, by the last part of its hub id or folder, or None."""
    known: dict[str, dict[str, Any]] = yaml.safe_load(KNOWN.read_text(encoding="utf-8"))
    return known.get(Path(path).name)


# ---- Geometry encoder and fusion -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ReleasedGeometry:
    """The parts of a released model besides its backbone.

    Attributes:
        layout: Prefixes of official names, with the prefixes of the same tensors in a `SpatialVLM`.
        aggregator: Arguments of VGGT's `Aggregator`.
        layers: Aggregator layers whose outputs are the 3D tokens.
        fusion: Builds the fusion without weights from the widths of the decoder and of the geometry encoder.
        reference: The frame that is VGGT's world.
    """

    layout: Layout
    aggregator: Mapping[str, Any]
    layers: tuple[int, ...]
    fusion: partial[Any]
    reference: ReferenceFrame = "first"

    def load_encoder(self, tensors: Tensors, dtype: torch.dtype) -> VGGTEncoder:
        """Return the VGGT that the fusion was trained with, without heads."""
        prefix = next(theirs for theirs, ours in self.layout.items() if ours == VGGT_MODEL)
        weights = TensorsUnder(tensors, prefix)
        vggt = VGGT.from_official({"aggregator": dict(self.aggregator)}, weights, dtype)
        return VGGTEncoder(vggt, self.layers, weights, reference=self.reference)

    def fit_fusion(self, fusion: Any) -> None:
        """Set the norm of a `StackFusion` to the release's, if it was not set, see `BackboneLoader.fit_fusion`."""
        if type(fusion) is not self.fusion.func or not isinstance(fusion, StackFusion):
            return
        if fusion.decoder_layers != (layers := self.fusion.keywords["decoder_layers"]):
            raise InputError(
                f"--model.fusion.decoder_layers {fusion.decoder_layers}: the released connectors are of the decoder's "
                f"layers {layers}, name these"
            )
        fusion.norm = fusion.norm or self.fusion.keywords["norm"]

    def load_fusion(self, fusion: nn.Module | None, tensors: Tensors) -> bool:
        """Copy the weights into a fusion of the released class. Return False for another class."""
        if fusion is None or type(fusion) is not self.fusion.func:
            return False
        for theirs, ours in self.layout.items():
            if ours.startswith(FUSION):
                part, weights = fusion.get_submodule(ours.removeprefix(FUSION)[:-1]), TensorsUnder(tensors, theirs)
                load_weights(part, ReleasedWeights(weights, "fusion", is_skipped=is_unused))
        return True


def spatial_mllm_geometry(aggregator: Mapping[str, Any], layer: int) -> ReleasedGeometry:
    """Return the parts of a Spatial-MLLM v1.1."""
    return ReleasedGeometry(SPATIAL_MLLM, aggregator, (layer,), partial(AddFusion))


def vg_llm_geometry(config: Mapping[str, Any], names: Collection[str]) -> ReleasedGeometry | None:
    """Return the parts of a VG-LLM. None if it was saved without geometry.

    The published code misreads the first release's config as one without geometry, and silently runs a plain
    Qwen2.5-VL. Here the tensor names distinguish both layouts. Without names the config decides.

    Args:
        config: Its config.json, with the arguments of an unusual `Aggregator` under `vggt_aggregator`.
        names: Official names of its tensors. Empty for a model that is built by shapes only.

    Raises:
        InputError: The encoder, merger or fusion differs from the released models'.
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
    """Return the parts of a SpatialStack. None if it was saved without geometry.

    Args:
        config: Its config.json, with the arguments of an unusual `Aggregator` under `vggt_aggregator`.
        names: Official names of its tensors, which determine the norm, because LayerNorm has a bias. Empty for a model
            that is built by shapes only. The norm is then the released model's.
        is_qwen25: Whether it is the variant on Qwen2.5-VL.

    Raises:
        InputError: The encoder, merger or fusion differs from the released models'.
    """
    if not config.get("use_geometry_encoder"):
        return None
    _refuse_other_parts(config, (STACK_ADD, "add"))
    has_bias = any(name.endswith(("geo_ln.bias", "geometry_merger.ln_q.bias")) for name in names)
    norm: PatchNorm = "layer" if has_bias or not (names or is_qwen25) else "rms"
    reference, family = config.get("reference_frame", "first"), QWEN25 if is_qwen25 else QWEN35
    if config["feature_fusion_method"] == "add":
        fusion: Any = partial(PatchMergerFusion, hidden=config.get("geometry_merger_hidden_dim", HIDDEN), norm=norm)
        layers = config.get("geometry_encoder_layers") or [-2]  # the published code uses the last one
        return ReleasedGeometry(stack_layout(family), _aggregator(config), (layers[-1],), fusion, reference)
    decoder_layers, encoder_layers = config["geometry_fusion_layers"], config["geometry_encoder_layers"]
    fusion = partial(StackFusion, decoder_layers=list(decoder_layers), norm=norm)
    layout = stack_layout(family, decoder_layers)
    return ReleasedGeometry(layout, _aggregator(config), tuple(encoder_layers), fusion, reference)


def geothinker_geometry(config: Mapping[str, Any], family: str) -> ReleasedGeometry | None:
    """Return the parts of a GeoThinker. None if it was saved without geometry.

    Args:
        config: Its config.json, with the arguments of an unusual `Aggregator` under `vggt_aggregator`.
        family: Family of its backbone.

    Raises:
        InputError: The encoder, merger or fusion differs from the released models'.
    """
    settings = geothinker_settings(config)
    if not (settings.get("use_geometry_encoder") and settings.get("geo_cross_attn")):
        return None
    _refuse_other_parts(settings, ("zero",), SUPPORTED_GEOTHINKER)
    fusion = partial(
        GeoThinkerFusion,
        hidden=settings.get("geometry_merger_hidden_dim", HIDDEN),
        compress_beyond=SMI_VIEWS if settings.get("depart_smi_token") else None,
        importance=settings.get("geo_importance_gate", True),
        detached=family == QWEN3,
    )
    layout = geothinker_layout(family, interaction_layers(range(settings["num_hidden_layers"])))
    return ReleasedGeometry(layout, _aggregator(config), (-2,), fusion, settings.get("reference_frame", "first"))


def _aggregator(config: Mapping[str, Any]) -> dict[str, Any]:
    return VGGT_SIZES | (config.get("vggt_aggregator") or {})


def _refuse_other_parts(
    config: Mapping[str, Any], fusions: tuple[str, ...], more: Mapping[str, tuple[Any, ...]] | None = None
) -> None:
    for name, known in {"feature_fusion_method": fusions, **SUPPORTED, **(more or {})}.items():
        if (value := config.get(name, known[0])) not in known:
            raise InputError(
                f"{name} {value!r} in the config: only {' or '.join(map(repr, known))} is supported, as released"
            )
