"""Export of a model as a released folder: weights by official names with LoRA merged, config.json, processor files.

A Qwen-VL can be exported, also with the geometry encoder and the fusion of a model in `zoo.published`. The published
code and the `Pretrained` backbones can read the folder.
"""

from __future__ import annotations

import shutil
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from huggingface_hub import save_torch_state_dict
from torch import Tensor, nn
from transformers import PreTrainedConfig, Qwen2_5_VLConfig, Qwen3_5Config, Qwen3VLConfig

from zoo.backbones.base import loaders
from zoo.backbones.official_names import (
    EMBEDDINGS,
    LM_HEAD,
    NOT_LOADED,
    QWEN,
    QWEN3,
    QWEN25,
    QWEN35,
    VGGT_MODEL,
    Layout,
    backbone_names,
)
from zoo.backbones.pretrained import FAMILIES, PretrainedQwenVL, backbone_settings
from zoo.configuration import complete_config, known_config
from zoo.errors import InputError
from zoo.files.atomic_io import new_folder, refuse_full, write_json, write_whole
from zoo.geometry import vggt
from zoo.geometry.cache import CachedGeometry
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
NEWER = {"layer_types", "rope_parameters", "text_config"}  # settings of transformers 5


# ---- The folder ------------------------------------------------------------------------------------------------------


def export_model(model: SpatialVLM, out: Path, dtype: torch.dtype | None = None) -> None:
    """Write a folder for the official code and the `Pretrained` backbones.

    Other content of the weights' source folder is copied: processor files, VGGT's heads and tracker, Qwen3.5's
    multi-token prediction, and tensors that the published code never reads.

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


def model_names(family: str, layout: Layout) -> NameTable:
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
        known = " or ".join(dict.fromkeys(fusion.__name__ for kind in loaders() for fusion in kind.released_fusions))
        raise InputError(
            f"{type(model).__name__} can't be exported, only a Qwen-VL, or what was released: VGGT with {known}: "
            f"{len(beyond)} tensors are in none, such as {beyond[-1]}{parts and f', because of {parts}'}"
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
    names, release = names_of(model), release_of(model)
    for name in dict.fromkeys(names.official(name) for name in state):
        rows = [merged(part) for part in names.current(name)]
        joined[name] = rows[0] if len(rows) == 1 else torch.cat(rows)
        if release is not None:
            joined[name] = release.to_official(name, joined[name])
    return joined


def official_parameters(model: SpatialVLM) -> dict[str, nn.Parameter]:
    """Return parameters by official names, except official tensors that are split into several here."""
    names = names_of(model)
    named = ((names.official(name), parameter) for name, parameter in model.named_parameters())
    return {official: parameter for official, parameter in named if len(names.current(official)) == 1}


def _as_in(source: Path, model: SpatialVLM, dtype: torch.dtype | None) -> dict[str, Tensor]:
    """Return the tensors in the names and dtypes of their source folder, and add the folder's unread tensors."""
    tensors, old, names = official_tensors(model), open_weights(source), names_of(model)
    release = release_of(model)
    first_of, unread = ({}, ()) if release is None else (release.second_names, release.unread)
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
        elif first.startswith((*NOT_LOADED, *of_vggt)) or any(f".{part}" in first for part in unread):
            written[name] = of_old(old[name])
    return written | {name: tensor.to(dtype or tensor.dtype) for name, tensor in rest.items()}


# ---- The layout of a model, and its parts that no layout has ---------------------------------------------------------


def release_of(model: SpatialVLM) -> type[PretrainedQwenVL] | None:
    """Return the class of released models with this backbone and fusion, or None. The model's loader comes first."""
    known = [kind for kind in (type(model.loader), *loaders()) if issubclass(kind, PretrainedQwenVL)]
    return next((kind for kind in known if kind.layout_of(model) is not None), None)


def official_layout(model: SpatialVLM) -> Layout | None:
    """Return the layout of a model's encoder and fusion. Empty without a fusion, None if no released model has them."""
    release = release_of(model)
    if release is None or not release.reads_encoder(model):
        return None
    return release.layout_of(model)


def unofficial_fusion(model: SpatialVLM) -> list[str]:
    """Return the parts and settings of a model's encoder and fusion that no released model has."""
    release = release_of(model)
    return [type(model.fusion).__name__] if release is None else release.departures(model)


def unofficial_parts(model: SpatialVLM) -> list[str]:
    """Return the parts and settings of a model that no official layout has."""
    with_token = [each for each in model.objectives.values() if each.has_token(training=False)]
    parts = (model.camera_encoding, model.view_mixer, model.output_gate, *with_token)
    found = [type(part).__name__ for part in parts if part is not None] + unofficial_fusion(model)
    if complete_config(model.time_index) != complete_config(model.backbone.default_time_index()):
        found.append(f"time_index: {type(model.time_index).__name__}")
    # for a video with one span per view both rules give the same
    if model.text_after_vision != OFFICIAL_TEXT and not model.time_index.per_span:
        found.append(f"text_after_vision: {model.text_after_vision}")
    return found


# ---- config.json -----------------------------------------------------------------------------------------------------


def released_config(model: SpatialVLM, source: dict[str, Any] | None) -> dict[str, Any]:
    """Return config.json, in the release's transformers format, of a Qwen-VL, also with an encoder and a fusion.

    The settings of `source`, the config.json of the weights' source folder, are kept.
    """
    config: Any = model.backbone.vlm.config
    stock = backbone_settings(STOCK[config.model_type](config) if source is None else source)
    stock |= {"model_type": config.model_type, "architectures": [FAMILIES[config.model_type].stock.__name__]}
    release = release_of(model)
    return stock if release is None else release.whole_config(model, stock, source or {})


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


STOCK = {QWEN25: _flat, QWEN3: _nested, QWEN35: _current}
