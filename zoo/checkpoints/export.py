"""A model as a released folder: weights by official names with LoRA merged, config, and processor files."""

from __future__ import annotations

import shutil
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from huggingface_hub import save_torch_state_dict
from torch import Tensor, nn

from zoo.backbones.official_names import (
    LM_HEAD,
    NOT_LOADED,
    QWEN,
    SECOND_NAMES,
    VGGT_MODEL,
    Layout,
    released_name,
)
from zoo.checkpoints.config import released_config
from zoo.checkpoints.layouts import official_layout, unofficial_fusion
from zoo.checkpoints.names import model_names, official_name
from zoo.configuration import complete_config, known_config
from zoo.errors import InputError
from zoo.files.atomic_io import new_folder, refuse_full, write_json, write_whole
from zoo.geometry import CachedGeometry
from zoo.weights.frozen import released_sources
from zoo.weights.hub import CONFIG, find_folder, read_config
from zoo.weights.lazy_tensors import INDEX, FirstNames, open_weights
from zoo.weights.model_card import FILE, model_card

if TYPE_CHECKING:
    from zoo.model import SpatialVLM

OFFICIAL_TEXT = "max_thw"  # `text_after_vision` of a model that is loaded from official files
EMBEDDINGS = "model.language_model.embed_tokens.weight"  # which a tied lm_head equals
TEXT_FILES = ("*.json", "*.txt", "*.jinja")


def export_model(model: SpatialVLM, out: Path, dtype: torch.dtype | None = None) -> None:
    """Write a folder for the official code, and for the `Pretrained` backbones.

    Other content of the folder that the weights came from is copied: processor files, VGGT's heads and tracker, and
    Qwen3.5's prediction of several tokens at once.

    Args:
        model: A Qwen-VL, or one with the encoder and fusion of a released model. LoRA is merged in the written
            weights; the model stays as it is. A geometry behind a cache is loaded.
        out: A new or empty folder.
        dtype: Of the weights; None is that of the folder they came from, else the model's.

    Raises:
        InputError: The folder is not empty or can't be written, the folder of the weights is gone, or the model has
            weights that no official model has. Files written by then are removed.
    """
    refuse_full(out)
    if isinstance(model.geometry, CachedGeometry):
        model.geometry = model.geometry.encoder()
    tensors = official_tensors(model)
    config: Any = model.backbone.vlm.config
    source = find_folder(config.name_or_path, config.name_or_path) if config.name_or_path else None
    with new_folder(out) as folder:
        layout = official_layout(model)
        save_torch_state_dict(_as_in(source, tensors, dtype, config.model_type, layout or {}), folder)
        written = released_config(model, None if source is None else read_config(source))
        if source is None or dtype is not None:
            written["torch_dtype"] = str(dtype or model.backbone.like.dtype).removeprefix("torch.")
        write_json(folder / CONFIG, written)
        # of a model from tensors in memory, the backbone has no configuration
        parts = {"class_path": "zoo.SpatialVLM", "init_args": known_config(model)}
        write_whole(folder / FILE, model_card(out.name, parts, dict(released_sources(model).values())))
        if source is not None:
            for path in (path for pattern in TEXT_FILES for path in source.glob(pattern)):
                if path.name not in (CONFIG, INDEX):
                    shutil.copyfile(path, folder / path.name)
            return
        ids = {name: getattr(config.text_config, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
        write_json(folder / "generation_config.json", ids)
        if hasattr(model.backbone, "preprocessor"):
            model.backbone.preprocessor.save_pretrained(str(folder))


def unofficial_parts(model: SpatialVLM) -> list[str]:
    """Return the parts and settings of a model that no official layout has."""
    parts = (model.camera_encoding, model.view_mixer, *model.objectives.with_token.values())
    found = [type(part).__name__ for part in parts if part is not None] + unofficial_fusion(model)
    if complete_config(model.time_index) != complete_config(model.backbone.default_time_index()):
        found.append(f"time_index: {type(model.time_index).__name__}")
    # of a video with one span per view both rules are the same
    if model.text_after_vision != OFFICIAL_TEXT and not model.time_index.per_span:
        found.append(f"text_after_vision: {model.text_after_vision}")
    return found


def official_tensors(model: SpatialVLM) -> dict[str, Tensor]:
    """Return the tensors of a released model by official names, without a tied lm_head.

    Heads of objectives, which no answer needs, are left out.

    Raises:
        InputError: The model has weights that no official model has.
    """
    from peft.tuners.lora import LoraLayer  # slow to import

    adapted: dict[str, Any] = {name: each for name, each in model.named_modules() if isinstance(each, LoraLayer)}
    state = {
        name.replace(".base_layer.", "."): tensor for name, tensor in model.state_dict().items() if ".lora_" not in name
    }
    if not model.objectives.with_token:
        state = {name: tensor for name, tensor in state.items() if not name.startswith("objectives.")}
    config: Any = model.backbone.vlm.config
    if config.tie_word_embeddings:
        del state[QWEN + LM_HEAD]
    family, layout = config.model_type, official_layout(model) or {}
    if beyond := [name for name in state if not name.startswith((QWEN, *layout.values()))]:
        raise InputError(
            f"{type(model).__name__} can't be exported, only a Qwen-VL, or what was released: VGGT of one layer with "
            f"AddFusion or PatchMergerFusion, or StackFusion: {len(beyond)} tensors are in none, such as {beyond[-1]}"
        )

    def merged(name: str) -> Tensor:
        """Return the tensor with the update of its adapters, in float32 or better."""
        tensor, layer = state[name], adapted.get(name.removesuffix(".weight"))
        if layer is None or not name.endswith(".weight"):
            return tensor
        exact = torch.promote_types(tensor.dtype, torch.float32)
        update: Any = sum(layer.get_delta_weight(adapter).to(exact) for adapter in layer.active_adapters)
        return (tensor.to(exact) + update).detach().to(tensor.dtype)

    joined: dict[str, Tensor] = {}
    for name in dict.fromkeys(official_name(name, family, layout) for name in state):
        rows = [merged(part) for part in model_names(name, family, layout)]
        joined[name] = rows[0] if len(rows) == 1 else torch.cat(rows)
    return joined


def official_parameters(model: SpatialVLM) -> dict[str, nn.Parameter]:
    """Return the parameters of a released model by official names, but for joint ones that are several here."""
    family, layout = model.backbone.vlm.config.model_type, official_layout(model) or {}
    found: dict[str, nn.Parameter] = {}
    for name, parameter in model.named_parameters():
        official = official_name(name, family, layout)
        if len(model_names(official, family, layout)) == 1:
            found[official] = parameter
    return found


def _as_in(
    source: Path | None, tensors: dict[str, Tensor], dtype: torch.dtype | None, family: str, layout: Layout
) -> dict[str, Tensor]:
    """Return the tensors in the names and dtypes of the folder they came from, and the unread parts from there."""
    old = FirstNames({} if source is None else open_weights(source), SECOND_NAMES.get(family, {}))
    of_vggt = tuple(theirs for theirs, ours in layout.items() if ours == VGGT_MODEL)
    written: dict[str, Tensor] = {}
    rest = dict(tensors)
    for name in old.tensors:
        first = old.first(name)
        ours = official_name(model_names(first, family, layout)[0], family, layout)
        of_old = partial(Tensor.to, dtype=dtype or old.tensors[name].dtype)
        if ours in tensors:
            is_again = ours not in rest  # the source holds it by both names, so does the copy
            rest.pop(ours, None)
            written[ours if name == first else name] = of_old(tensors[ours], copy=is_again)
        elif name == LM_HEAD:  # tied: the source holds it twice, so does the copy
            written[name] = of_old(tensors[released_name(EMBEDDINGS, family)], copy=True)
        elif first.startswith((*NOT_LOADED, *of_vggt)):
            written[name] = of_old(old.tensors[name])
    return written | {name: tensor.to(dtype or tensor.dtype) for name, tensor in rest.items()}
