"""Official names of VGGT's tensors, and weights by these names in and out.

Our modules carry the official names, but for the DINOv2, which is transformers': there the names differ, and
the official joint projection of queries, keys and values is three.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from zoo.errors import InputError
from zoo.hub import download
from zoo.weights import WEIGHTS, load_into

DINOV2_PREFIX = "aggregator.patch_embed."
QKV = (".attention.q_proj.", ".attention.k_proj.", ".attention.v_proj.")
RENAMED = (  # official, transformers'; a name without the final dot is a whole name
    ("cls_token", "embeddings.cls_token"),
    ("mask_token", "embeddings.mask_token"),
    ("register_tokens", "embeddings.register_tokens"),
    ("pos_embed", "embeddings.position_embeddings"),
    ("patch_embed.proj.", "embeddings.patch_embeddings.projection."),
    ("norm.", "layernorm."),
    ("blocks.", "encoder.layer."),
)
RENAMED_IN_BLOCK = (
    (".attn.proj.", ".attention.o_proj."),
    (".ls1.gamma", ".layer_scale1.lambda1"),
    (".ls2.gamma", ".layer_scale2.lambda1"),
)


def current_names(official: str) -> tuple[str, ...]:
    """Our names of an official tensor; three of them share its rows equally."""
    if not official.startswith(DINOV2_PREFIX):
        return (official,)
    rest = official.removeprefix(DINOV2_PREFIX)
    for theirs, ours in RENAMED:
        if rest.startswith(theirs):
            rest = ours + rest.removeprefix(theirs)
            break
    for theirs, ours in RENAMED_IN_BLOCK:
        rest = rest.replace(theirs, ours)
    names = [rest.replace(".attn.qkv.", part) for part in QKV] if ".attn.qkv." in rest else [rest]
    return tuple(DINOV2_PREFIX + name for name in names)


def official_name(current: str) -> str:
    """The official tensor that one of ours is, or is a part of."""
    if not current.startswith(DINOV2_PREFIX):
        return current
    rest = current.removeprefix(DINOV2_PREFIX)
    for part in QKV:
        rest = rest.replace(part, ".attn.qkv.")
    for theirs, ours in RENAMED_IN_BLOCK:
        rest = rest.replace(ours, theirs)
    for theirs, ours in RENAMED:
        if rest.startswith(ours):
            rest = theirs + rest.removeprefix(ours)
            break
    return DINOV2_PREFIX + rest


def official_state_dict(model: nn.Module) -> dict[str, Tensor]:
    """The model's tensors by official names, ready to be saved."""
    state = model.state_dict()
    parts: dict[str, list[Tensor]] = {}
    for name in dict.fromkeys(official_name(name) for name in state):
        parts[name] = [state[part] for part in current_names(name)]
    return {name: tensors[0] if len(tensors) == 1 else torch.cat(tensors) for name, tensors in parts.items()}


def load_official(model: nn.Module, tensors: Mapping[str, Tensor], skip: tuple[str, ...] = ()) -> None:
    """Copies official tensors into the model, one at a time.

    Args:
        model: with the modules that are wanted.
        tensors: official name to tensor; may be read from a file as they are asked for.
        skip: prefixes of names that the model has no use for.

    Raises:
        InputError: naming what is missing, unexpected, or has another shape. Some may be loaded by then.
    """
    load_into(
        model.state_dict(),
        tensors,
        current_names=current_names,
        official_name=official_name,
        skip=skip,
        what="VGGT",
    )


def find_weights(path: str) -> Path:
    """The safetensors file that a file name, a folder or a hub id stands for; a hub id may be downloaded.

    Raises:
        InputError: there is none; pickled weights (.pt, .bin) are never read.
    """
    local = Path(path).expanduser()
    if local.is_file() and local.suffix == ".safetensors":
        return local
    if (local / WEIGHTS).is_file():
        return local / WEIGHTS
    if local.exists():
        raise InputError(
            f"{path} is neither a .safetensors file nor a folder with {WEIGHTS} in it: download it again, "
            f"`hf download facebook/VGGT-1B {WEIGHTS} --local-dir {path if local.is_dir() else 'weights/vggt-1b'}`"
        )
    try:
        downloaded = download(path, [WEIGHTS]) / WEIGHTS
        if not downloaded.is_file():
            raise FileNotFoundError(downloaded)
        return downloaded
    except FileNotFoundError as error:
        raise InputError(
            f"{path} is no local file or folder, and can't be loaded from the hub: run "
            "`hf download facebook/VGGT-1B model.safetensors --local-dir weights/vggt-1b` "
            "where there is a network, then give weights/vggt-1b"
        ) from error
