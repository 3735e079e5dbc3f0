"""Export of a model as a released folder: weights by official names with LoRA merged, config.json, processor files.

A backbone of a released family can be exported, also with the geometry encoder and the fusion of a model in
`zoo.published`. The published code and the `Pretrained` backbones can read the folder.
"""

from __future__ import annotations

import shutil
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from huggingface_hub import save_torch_state_dict
from torch import Tensor, nn

from zoo.backbones.base import loaders
from zoo.backbones.pretrained import EMBEDDINGS, GEOMETRY, LM_HEAD, VLM, PretrainedBackbone, backbone_settings
from zoo.configuration import complete_config, known_config
from zoo.errors import InputError
from zoo.files.atomic_io import new_folder, refuse_full, write_json, write_whole
from zoo.geometry.cache import CachedGeometry
from zoo.weights.checkpoint import released_sources
from zoo.weights.load import (
    CONFIG,
    INDEX,
    Layout,
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


# ---- The folder ------------------------------------------------------------------------------------------------------


def export_model(model: SpatialVLM, out: Path, dtype: torch.dtype | None = None) -> None:
    """Write a folder for the official code and the `Pretrained` backbones.

    Other content of the weights' source folder is copied: processor files, VGGT's heads and tracker, Qwen3.5's
    multi-token prediction, and tensors that the published code never reads.

    Args:
        model: A backbone of a released family, also with the encoder and fusion of a released model. LoRA is merged in
            the written weights, and the model is unchanged. A geometry encoder behind a cache is loaded.
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


def names_of(model: SpatialVLM) -> NameTable:
    """Return a table between official tensor names of a released model and names in a `SpatialVLM`.

    Without an official layout, only the backbone has official names.
    """
    kind, layout = release_of(model) or family_of(model), official_layout(model) or {}
    backbone, encoder, start = kind.backbone_names(), kind.encoder_names, kind.encoder_prefix

    def current(official: str) -> tuple[str, ...]:
        name = replace_prefix(official, layout)
        if not official.startswith(tuple(layout)):
            return tuple(VLM + own for own in backbone.current(official))
        if name.startswith(start):
            return tuple(start + own for own in encoder.current(name.removeprefix(start)))
        return (name,)

    def official(name: str) -> str:
        if name.startswith(VLM):
            return backbone.official(name.removeprefix(VLM))
        if name.startswith(start):
            name = start + encoder.official(name.removeprefix(start))
        return replace_prefix(name, {ours: theirs for theirs, ours in layout.items()})

    return NameTable(current, official)


def official_tensors(model: SpatialVLM) -> dict[str, Tensor]:
    """Return the tensors of a released model by official names, without a tied lm_head.

    Heads of objectives are left out, because answers do not need them. Those that were released with the model stay.

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
    layout = official_layout(model) or {}
    with_token = (f"objectives.{name}." for name, each in model.objectives.items() if each.has_token(training=False))
    read = (*layout.values(), *with_token)
    state = {name: each for name, each in state.items() if not name.startswith("objectives.") or name.startswith(read)}
    config: Any = model.backbone.vlm.config
    if config.tie_word_embeddings:
        del state[VLM + LM_HEAD]
    if beyond := [name for name in state if not name.startswith((VLM, *layout.values()))]:
        parts = ", ".join(unofficial_fusion(model))
        known = " or ".join(dict.fromkeys(fusion.__name__ for kind in loaders() for fusion in kind.released_fusions))
        raise InputError(
            f"{type(model).__name__} can't be exported, only a backbone, or what was released with {known}: "
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
    kind = release_of(model) or family_of(model)
    of_encoder = tuple(theirs for theirs, ours in (official_layout(model) or {}).items() if ours.startswith(GEOMETRY))
    written: dict[str, Tensor] = {}
    rest = dict(tensors)
    for name in old:
        first = replace_prefix(name, kind.second_names)
        ours = names.official(names.current(first)[0])
        of_old = partial(Tensor.to, dtype=dtype or old[name].dtype)
        if ours in tensors:
            is_again = ours not in rest  # the source has it under both names, and so does the copy
            rest.pop(ours, None)
            written[ours if name == first else name] = of_old(tensors[ours], copy=is_again)
        elif name == LM_HEAD:  # tied, but the source has it twice, and so does the copy
            written[name] = of_old(tensors[names.official(VLM + EMBEDDINGS)], copy=True)
        elif first.startswith((*kind.not_loaded, *of_encoder)) or any(f".{part}" in first for part in kind.unread):
            written[name] = of_old(old[name])
    return written | {name: tensor.to(dtype or tensor.dtype) for name, tensor in rest.items()}


# ---- The layout of a model, and its parts that no layout has ---------------------------------------------------------


def release_of(model: SpatialVLM) -> type[PretrainedBackbone] | None:
    """Return the class of released models with this backbone and fusion, or None. The model's loader comes first."""
    return next((kind for kind in _kinds(model) if kind.layout_of(model) is not None), None)


def _kinds(model: SpatialVLM) -> list[type[PretrainedBackbone]]:
    """Return the classes of released models, those of the model's own backbone before those of its parents."""
    known = [kind for kind in (type(model.loader), *loaders()) if issubclass(kind, PretrainedBackbone)]
    return sorted(known, key=lambda kind: kind.backbone_class is not type(model.backbone))


def family_of(model: SpatialVLM) -> type[PretrainedBackbone]:
    """Return the class of released models with this backbone alone.

    Raises:
        InputError: No family was released with it.
    """
    found = next((kind for kind in _kinds(model) if isinstance(model.backbone, kind.backbone_class)), None)
    if found is None:
        raise InputError(f"a {type(model.backbone).__name__} has no official layout: export with --layout zoo")
    return found


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
    release = release_of(model)
    released = () if release is None else release.released_objectives
    of_answers = [
        each for each in model.objectives.values() if each.is_part_of_answers and not isinstance(each, released)
    ]
    parts = (model.camera_encoding, model.view_mixer, model.output_gate, *of_answers)
    found = [type(part).__name__ for part in parts if part is not None] + unofficial_fusion(model)
    if complete_config(model.time_index) != complete_config(model.backbone.default_time_index()):
        found.append(f"time_index: {type(model.time_index).__name__}")
    # for a video with one span per view both rules give the same
    if model.text_after_vision != OFFICIAL_TEXT and not model.time_index.per_span:
        found.append(f"text_after_vision: {model.text_after_vision}")
    return found


# ---- config.json -----------------------------------------------------------------------------------------------------


def released_config(model: SpatialVLM, source: dict[str, Any] | None) -> dict[str, Any]:
    """Return config.json, in the release's transformers format, of a backbone, also with an encoder and a fusion.

    The settings of `source`, the config.json of the weights' source folder, are kept.
    """
    kind = release_of(model) or family_of(model)
    own = backbone_settings(kind.written_config(model.backbone.vlm.config) if source is None else source)
    own |= {"model_type": kind.family, "architectures": [kind.architecture]}
    return kind.whole_config(model, own, source or {})
