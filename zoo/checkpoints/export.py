"""Export of a model as a released folder: weights by official names with LoRA merged, config.json, processor files.

A Qwen-VL can be exported, also with the geometry encoder and the fusion of a released model: Spatial-MLLM, VG-LLM,
SpatialStack or GeoThinker. The published code and the `Pretrained` backbones can read the folder.
"""

from __future__ import annotations

import inspect
import shutil
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from huggingface_hub import save_torch_state_dict
from torch import Tensor, nn
from transformers import PreTrainedConfig, Qwen2_5_VLConfig, Qwen3_5Config, Qwen3VLConfig

from zoo.backbones.official_names import (
    EMBEDDINGS,
    INTERACTION,
    LM_HEAD,
    NOT_LOADED,
    QWEN,
    QWEN3,
    QWEN25,
    QWEN35,
    SECOND_NAMES,
    SPATIAL_MLLM,
    UNUSED,
    VG_LLM_FIRST,
    VGGT_MODEL,
    Layout,
    backbone_names,
    geothinker_layout,
    stack_layout,
)
from zoo.backbones.released_configs import (
    CONNECTOR_TYPE,
    GEOMETRY_KEYS,
    GEOMETRY_PARTS,
    GEOTHINKER_KEYS,
    OTHERS,
    SMI_KEYS,
    SMI_VIEWS,
    STACK_ADD,
    VGGT_SIZES,
)
from zoo.configuration import complete_config, known_config
from zoo.errors import InputError
from zoo.files.atomic_io import new_folder, refuse_full, write_json, write_whole
from zoo.fusions import AddFusion, GeoThinkerFusion, PatchMergerFusion, StackFusion
from zoo.fusions.base import HIDDEN
from zoo.geometry import CachedGeometry, vggt
from zoo.geometry.vggt import Aggregator
from zoo.geometry.vggt_encoder import VGGTEncoder
from zoo.weights.checkpoint import released_sources
from zoo.weights.load import (
    CONFIG,
    INDEX,
    NameTable,
    find_folder,
    is_quantized,
    open_weights,
    read_config,
    replace_prefix,
)
from zoo.weights.saved_models import CARD_FILE, model_card

if TYPE_CHECKING:
    from zoo.model import SpatialVLM

OFFICIAL_TEXT = "max_thw"  # `text_after_vision` of a model loaded from official files
TEXT_FILES = ("*.json", "*.txt", "*.jinja")
AGGREGATOR = {name: each.default for name, each in inspect.signature(Aggregator).parameters.items()}
NEWER = {"layer_types", "rope_parameters", "text_config"}  # settings of transformers 5
OFFICIAL_NORM = {QWEN25: "rms", QWEN35: "layer"}  # norm of a patch by family, see `PatchMerger`


# ---- The folder ------------------------------------------------------------------------------------------------------


def export_model(model: SpatialVLM, out: Path, dtype: torch.dtype | None = None) -> None:
    """Write a folder for the official code and the `Pretrained` backbones.

    Other content of the weights' source folder is copied: processor files, VGGT's heads and tracker, Qwen3.5's
    multi-token prediction, and the `bias_gate` of a GeoThinker.

    Args:
        model: A Qwen-VL, or one with the encoder and fusion of a released model. LoRA is merged in the written weights,
            and the model is unchanged. A geometry encoder behind a cache is loaded.
        out: A new or empty folder.
        dtype: Dtype of the weights. None uses the source folder's dtype, or the model's if there is no source folder.

    Raises:
        InputError: The folder is not empty or can't be written, the source folder no longer exists, or the model has
            weights that no official model has. Files written so far are removed.
    """
    refuse_full(out)
    if isinstance(model.geometry, CachedGeometry):
        model.geometry = model.geometry.encoder()
    config: Any = model.backbone.vlm.config
    source = find_folder(config.name_or_path, config.name_or_path) if config.name_or_path else None
    if source is None:
        tensors = {name: tensor.to(dtype or tensor.dtype) for name, tensor in official_tensors(model).items()}
    else:
        tensors = _as_in(source, model, dtype)
    with new_folder(out) as folder:
        save_torch_state_dict(tensors, folder)
        written = released_config(model, None if source is None else read_config(source))
        if source is None or dtype is not None:
            written["torch_dtype"] = str(dtype or model.backbone.like.dtype).removeprefix("torch.")
        write_json(folder / CONFIG, written)
        # the backbone of a model from tensors in memory has no configuration
        parts = {"class_path": "zoo.SpatialVLM", "init_args": known_config(model)}
        write_whole(folder / CARD_FILE, model_card(out.name, parts, dict(released_sources(model).values())))
        if source is not None:
            for path in (path for pattern in TEXT_FILES for path in source.glob(pattern)):
                if path.name not in (CONFIG, INDEX):
                    shutil.copyfile(path, folder / path.name)
            return
        ids = {name: getattr(config.text_config, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
        write_json(folder / "generation_config.json", ids)
        if hasattr(model.backbone, "preprocessor"):
            model.backbone.preprocessor.save_pretrained(str(folder))


# ---- Weights ---------------------------------------------------------------------------------------------------------


def model_names(family: str = QWEN25, layout: Layout = SPATIAL_MLLM) -> NameTable:
    """Return a table between official tensor names of a released model and names in a `SpatialVLM`.

    An empty layout is a backbone without geometry encoder and fusion.
    """
    backbone = backbone_names(family)

    def current(official: str) -> tuple[str, ...]:
        for theirs, ours in layout.items():
            if official.startswith(theirs):
                rest = official.removeprefix(theirs)
                return tuple(ours + name for name in (vggt.current_names(rest) if ours == VGGT_MODEL else (rest,)))
        return tuple(QWEN + name for name in backbone.current(official))

    def official(name: str) -> str:
        for theirs, ours in layout.items():
            if name.startswith(ours):
                rest = name.removeprefix(ours)
                return theirs + (vggt.official_name(rest) if ours == VGGT_MODEL else rest)
        return backbone.official(name.removeprefix(QWEN))

    return NameTable(current, official)


def names_of(model: SpatialVLM) -> NameTable:
    """Return the name table of a model that has an official layout."""
    return model_names(model.backbone.vlm.config.model_type, official_layout(model) or {})


def official_tensors(model: SpatialVLM) -> dict[str, Tensor]:
    """Return the tensors of a released model by official names, without a tied lm_head.

    Heads of objectives are left out, because answers do not need them.

    Raises:
        InputError: The model has weights that no official model has.
    """
    if any(map(is_quantized, model.parameters())):
        raise InputError(
            "--model.lora.quantization nf4: adapters are merged into the released weights, not into their four bits; "
            "export with --model.lora.quantization null, or with --layout zoo"
        )
    # peft's layers; importing peft to ask for their class takes seconds
    adapted: dict[str, Any] = {name: each for name, each in model.named_modules() if hasattr(each, "get_delta_weight")}
    state = {
        name.replace(".base_layer.", "."): tensor for name, tensor in model.state_dict().items() if ".lora_" not in name
    }
    if not any(each.has_token(training=False) for each in model.objectives.values()):
        state = {name: tensor for name, tensor in state.items() if not name.startswith("objectives.")}
    config: Any = model.backbone.vlm.config
    if config.tie_word_embeddings:
        del state[QWEN + LM_HEAD]
    layout = official_layout(model) or {}
    if beyond := [name for name in state if not name.startswith((QWEN, *layout.values()))]:
        parts = ", ".join(unofficial_fusion(model))
        raise InputError(
            f"{type(model).__name__} can't be exported, only a Qwen-VL, or what was released: VGGT of one layer with "
            f"AddFusion or PatchMergerFusion, StackFusion or GeoThinkerFusion: {len(beyond)} tensors are in none, such "
            f"as {beyond[-1]}{parts and f', because of {parts}'}"
        )

    def merged(name: str) -> Tensor:
        """Return the tensor with the update of its adapters, computed in float32 or better."""
        tensor, layer = state[name], adapted.get(name.removesuffix(".weight"))
        if layer is None or not name.endswith(".weight"):
            return tensor
        exact = torch.promote_types(tensor.dtype, torch.float32)
        update: Any = sum(layer.get_delta_weight(adapter).to(exact) for adapter in layer.active_adapters)
        return (tensor.to(exact) + update).detach().to(tensor.dtype)

    joined: dict[str, Tensor] = {}
    names = names_of(model)
    for name in dict.fromkeys(names.official(name) for name in state):
        rows = [merged(part) for part in names.current(name)]
        joined[name] = rows[0] if len(rows) == 1 else torch.cat(rows)
        if name.endswith(f"{INTERACTION}gate"):
            joined[name] = joined[name][0]  # a number there
    return joined


def official_parameters(model: SpatialVLM) -> dict[str, nn.Parameter]:
    """Return parameters by official names, except official tensors that are split into several here."""
    names = names_of(model)
    named = ((names.official(name), parameter) for name, parameter in model.named_parameters())
    return {official: parameter for official, parameter in named if len(names.current(official)) == 1}


def _as_in(source: Path, model: SpatialVLM, dtype: torch.dtype | None) -> dict[str, Tensor]:
    """Return the tensors in the names and dtypes of their source folder, and add the folder's unread tensors."""
    tensors, old, names = official_tensors(model), open_weights(source), names_of(model)
    first_of = SECOND_NAMES.get(model.backbone.vlm.config.model_type, {})
    of_vggt = tuple(theirs for theirs, ours in (official_layout(model) or {}).items() if ours == VGGT_MODEL)
    written: dict[str, Tensor] = {}
    rest = dict(tensors)
    for name in old:
        first = replace_prefix(name, first_of)
        ours = names.official(names.current(first)[0])
        of_old = partial(Tensor.to, dtype=dtype or old[name].dtype)
        if ours in tensors:
            is_again = ours not in rest  # the source has it under both names, and so does the copy
            rest.pop(ours, None)
            written[ours if name == first else name] = of_old(tensors[ours], copy=is_again)
        elif name == LM_HEAD:  # tied, but the source has it twice, and so does the copy
            written[name] = of_old(tensors[names.official(QWEN + EMBEDDINGS)], copy=True)
        elif first.startswith((*NOT_LOADED, *of_vggt)) or INTERACTION + UNUSED in first:
            written[name] = of_old(old[name])
    return written | {name: tensor.to(dtype or tensor.dtype) for name, tensor in rest.items()}


# ---- The layout of a model, and its parts that no layout has ---------------------------------------------------------


def official_layout(model: SpatialVLM) -> Layout | None:
    """Return the layout of a model's encoder and fusion. Empty without a fusion, None if no released model has them."""
    fusion, encoder = model.fusion, model.geometry
    layout = _layout_of(model)
    if fusion is None or (isinstance(encoder, VGGTEncoder) and type(fusion) is StackFusion):
        return layout
    return layout if isinstance(encoder, VGGTEncoder) and encoder.num_layers == 1 else None


def _layout_of(model: SpatialVLM) -> Layout | None:
    """Return the layout, judged by the fusion alone."""
    fusion, family = model.fusion, model.backbone.vlm.config.model_type
    if fusion is None:
        return {}
    if family == QWEN25 and type(fusion) is AddFusion:
        return SPATIAL_MLLM
    if family == QWEN25 and type(fusion) is PatchMergerFusion and model.loader.layout == VG_LLM_FIRST:
        return VG_LLM_FIRST
    if family in (QWEN25, QWEN3) and type(fusion) is GeoThinkerFusion:
        return geothinker_layout(family, fusion.interactions)
    if family in (QWEN25, QWEN35) and type(fusion) in (PatchMergerFusion, StackFusion):
        return stack_layout(family, fusion.decoder_layers if isinstance(fusion, StackFusion) else None)
    return None


def unofficial_fusion(model: SpatialVLM) -> list[str]:
    """Return the parts and settings of a model's encoder and fusion that no released model has."""
    fusion: Any = model.fusion
    family = model.backbone.vlm.config.model_type
    encoder: Any = None if model.geometry is None else model.geometry.meta_encoder
    found = [] if _layout_of(model) is not None else [type(fusion).__name__]
    if encoder is not None and (fusion is None or not isinstance(encoder, VGGTEncoder)):
        found.append(type(encoder).__name__)  # used for cameras alone, or for other 3D tokens
    if fusion is None or not isinstance(encoder, VGGTEncoder):
        return found
    if encoder.num_layers > 1 and type(fusion) is not StackFusion:
        found.append(f"geometry of {encoder.num_layers} layers")
    elif (
        type(fusion) in (PatchMergerFusion, GeoThinkerFusion)
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
        official["hidden"] = HIDDEN  # config.json has no setting for this
    if type(fusion) is GeoThinkerFusion:
        official |= {"groups": "published", "detached": family == QWEN3}
        if fusion.compress_beyond is not None:
            official["compress_beyond"] = SMI_VIEWS
    values = {name: getattr(fusion, name) for name in official}
    return found + [f"{name}: {value}" for name, value in values.items() if value != official[name]]


def unofficial_parts(model: SpatialVLM) -> list[str]:
    """Return the parts and settings of a model that no official layout has."""
    with_token = [each for each in model.objectives.values() if each.has_token(training=False)]
    parts = (model.camera_encoding, model.view_mixer, *with_token)
    found = [type(part).__name__ for part in parts if part is not None] + unofficial_fusion(model)
    if complete_config(model.time_index) != complete_config(model.backbone.default_time_index()):
        found.append(f"time_index: {type(model.time_index).__name__}")
    # for a video with one span per view both rules give the same
    if model.text_after_vision != OFFICIAL_TEXT and not model.time_index.per_span:
        found.append(f"text_after_vision: {model.text_after_vision}")
    return found


# ---- config.json -----------------------------------------------------------------------------------------------------


def released_config(model: SpatialVLM, source: dict[str, Any] | None) -> dict[str, Any]:
    """Return config.json, in the release's transformers format, of a Qwen-VL, also with VGGT and a fusion.

    The settings of `source`, the config.json of the weights' source folder, are kept.
    """
    if model.backbone.vlm.config.model_type == QWEN3:
        plain = _nested(model.backbone.vlm.config) if source is None else source
        return _with_interactions(model, plain) if model.fusion is not None else plain
    if model.backbone.vlm.config.model_type == QWEN35:
        current = _current(model.backbone.vlm.config) if source is None else source
        qwen = {name: value for name, value in current.items() if name not in GEOMETRY_PARTS}
        stock = qwen | {"architectures": ["Qwen3_5ForConditionalGeneration"]}
        return stock | fused_settings(model, source or {}, "Qwen3_5ForConditionalGenerationWithGeometry")
    flat = _flat(model.backbone.vlm.config) if source is None else source
    qwen = {name: value for name, value in flat.items() if name not in OTHERS}
    if not isinstance(model.fusion, AddFusion):
        stock = {"model_type": "qwen2_5_vl", "architectures": ["Qwen2_5_VLForConditionalGeneration"], **qwen}
        return stock | fused_settings(model, source or {}, "Qwen2_5_VLForConditionalGenerationWithVGGT")
    kept, geometry = source or {}, model.geometry
    assert isinstance(geometry, VGGTEncoder)
    aggregator = _aggregator(geometry)
    connector = {"connector_type": CONNECTOR_TYPE, "spatial_embeds_layer_idx": geometry.layers[0]}
    config = {
        "model_type": "spatial-mllm",
        "architectures": ["SpatialMLLMForConditionalGeneration"],
        **qwen,
        "spatial_config": kept.get("spatial_config", {}) | {name: aggregator.pop(name) for name in VGGT_SIZES},
        "connector_config": kept.get("connector_config", {}) | connector,
    }
    return config | _unusual(aggregator)


def fused_settings(model: SpatialVLM, source: dict[str, Any], architecture: str) -> dict[str, Any]:
    """Return the settings of encoder and fusion as the published codes write them. Empty without a fusion."""
    if model.fusion is None:
        return {}
    assert isinstance(model.geometry, VGGTEncoder)
    return {
        "architectures": [architecture],
        **{name: source[name] for name in GEOMETRY_KEYS if name in source},
        **_geometry_keys(model, model.geometry, source),
        **_unusual(_aggregator(model.geometry)),
    }


def _with_interactions(model: SpatialVLM, plain: dict[str, Any]) -> dict[str, Any]:
    """Return the config of a GeoThinker on Qwen3-VL, which repeats some settings in the decoder's part."""
    found = plain | fused_settings(model, plain, "Qwen3VLForConditionalGenerationWithVGGT")
    own = {name: found[name] for name in GEOTHINKER_KEYS if name in found}
    found = {name: value for name, value in found.items() if name not in own or name in SMI_KEYS}
    return found | {"text_config": found["text_config"] | own}


def _aggregator(geometry: VGGTEncoder) -> dict[str, Any]:
    """Return all arguments of the aggregator."""
    given: Any = geometry.vggt.config["aggregator"]
    return AGGREGATOR | given


def _unusual(aggregator: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments that differ from VGGT-1B's. The published code has no settings for them."""
    unusual = {name: value for name, value in aggregator.items() if value != AGGREGATOR[name]}
    return {"vggt_aggregator": unusual} if unusual else {}


def _geometry_keys(model: SpatialVLM, geometry: VGGTEncoder, source: dict[str, Any]) -> dict[str, Any]:
    """Return the settings of encoder and fusion that follow from the model."""
    fusion, reference = model.fusion, {"reference_frame": geometry.reference}
    if isinstance(fusion, PatchMergerFusion) and official_layout(model) == VG_LLM_FIRST:
        return {"use_vggt_feature": True, **reference, "vggt_merger_hidden_dim": fusion.hidden}
    shared = {"use_geometry_encoder": True, "geometry_encoder_type": "vggt", **reference, "fusion_num_layers": 1}
    shared["geometry_merger_type"] = "mlp"
    if isinstance(fusion, PatchMergerFusion):
        added = {**shared, "feature_fusion_method": "add", "geometry_merger_hidden_dim": fusion.hidden}
        if model.backbone.vlm.config.model_type != QWEN35 and "geometry_fusion_layers" not in source:
            return added  # VG-LLM has no setting for layers
        return {**added, "geometry_fusion_layers": None, "geometry_encoder_layers": list(geometry.layers)}
    if isinstance(fusion, GeoThinkerFusion):
        return {
            **shared,
            "feature_fusion_method": "zero",
            "geometry_merger_hidden_dim": fusion.hidden,
            "geo_cross_attn": True,
            "geo_inject_version": "v2_flash",
            "geo_importance_gate": fusion.importance,
            "depart_smi_token": fusion.compress_beyond is not None,
            "smi_image_num": SMI_VIEWS,
            "smi_downsample_rate": 2,
        }
    assert isinstance(fusion, StackFusion)
    # one for each decoder layer
    encoder_layers = list(geometry.layers) * (len(fusion.decoder_layers) // geometry.num_layers)
    layers = {"geometry_fusion_layers": fusion.decoder_layers, "geometry_encoder_layers": encoder_layers}
    return {**shared, "feature_fusion_method": STACK_ADD, **layers}


def _flat(config: Qwen2_5_VLConfig) -> dict[str, Any]:
    """Return the decoder's settings at the top level, with the old names of RoPE's settings."""
    nested = config.to_dict()
    rope = nested["text_config"]["rope_parameters"]
    return {
        **_own(nested["text_config"] | nested),
        "rope_theta": rope["rope_theta"],
        "rope_scaling": {"type": "mrope", "mrope_section": list(rope["mrope_section"])},
        "vision_config": _own(nested["vision_config"]),
    }


def _nested(config: Qwen3VLConfig) -> dict[str, Any]:
    """Return the config of a Qwen3-VL with the old names of RoPE's settings."""
    nested = config.to_dict()
    text, vision = nested["text_config"], nested["vision_config"]
    rope = dict(text["rope_parameters"])
    return {
        **_own(nested),
        "model_type": QWEN3,
        "architectures": ["Qwen3VLForConditionalGeneration"],
        "text_config": {
            **_own(text),
            "model_type": text["model_type"],
            "rope_theta": rope.pop("rope_theta"),
            "rope_scaling": {**rope, "mrope_section": list(rope["mrope_section"])},
        },
        "vision_config": {**_own(vision), "model_type": QWEN3},
    }


def _current(config: Qwen3_5Config) -> dict[str, Any]:
    """Return the config of a Qwen3.5, which was released with the names of transformers 5."""
    nested = config.to_dict()
    text, vision = nested["text_config"], nested["vision_config"]
    return {
        **_own(nested),
        "model_type": QWEN35,
        "text_config": {
            **_own(text),
            **{name: text[name] for name in ("model_type", "layer_types", "rope_parameters")},
        },
        "vision_config": {**_own(vision), "model_type": QWEN35},
    }


def _own(settings: dict[str, Any]) -> dict[str, Any]:
    """Return settings without generic ones of every model and without those of transformers 5."""
    generic = NEWER | PreTrainedConfig().to_dict().keys()
    return {name: value for name, value in settings.items() if name not in generic}
