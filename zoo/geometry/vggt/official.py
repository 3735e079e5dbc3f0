"""Official names of VGGT's tensors, and the file of its weights.

The modules here carry the official names, except for DINOv2, which is transformers' own: its names differ, and the
official joint projection of queries, keys and values is three.
"""

from __future__ import annotations

from pathlib import Path

from zoo.errors import InputError
from zoo.weights.hub import download
from zoo.weights.lazy_tensors import WEIGHTS, LazyTensors, SafetensorsFile, UnopenedTensors

DINOV2_PREFIX = "aggregator.patch_embed."
QKV = (".attention.q_proj.", ".attention.k_proj.", ".attention.v_proj.")
RENAMED = (  # prefixes: official, transformers'
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
    """The names here of an official tensor; three names share its rows equally."""
    if not official.startswith(DINOV2_PREFIX):
        return (official,)
    name = _translate(official.removeprefix(DINOV2_PREFIX), 0, 1)
    names = [name.replace(".attn.qkv.", part) for part in QKV] if ".attn.qkv." in name else [name]
    return tuple(DINOV2_PREFIX + each for each in names)


def official_name(current: str) -> str:
    """The official name of a tensor here, or of the tensor that it is a part of."""
    if not current.startswith(DINOV2_PREFIX):
        return current
    name = current.removeprefix(DINOV2_PREFIX)
    for part in QKV:
        name = name.replace(part, ".attn.qkv.")
    return DINOV2_PREFIX + _translate(name, 1, 0)


def _translate(name: str, source: int, target: int) -> str:
    for pair in RENAMED_IN_BLOCK:
        name = name.replace(pair[source], pair[target])
    for pair in RENAMED:
        if name.startswith(pair[source]):
            return pair[target] + name.removeprefix(pair[source])
    return name


def official_tensors(path: str) -> LazyTensors:
    """Return the tensors of a file name, a folder or a hub id, see `find_weights`; they are opened when needed."""
    return UnopenedTensors(lambda: SafetensorsFile(find_weights(path)))


def find_weights(path: str) -> Path:
    """The safetensors file of a file name, a folder or a hub id, which is downloaded if needed.

    Raises:
        InputError: There is none; pickled weights (.pt, .bin) are never read.
    """
    local, cause = Path(path).expanduser(), None
    file = local if local.suffix == ".safetensors" else local / WEIGHTS
    try:
        if not local.exists():
            file = download(path, [WEIGHTS]) / WEIGHTS
        if file.is_file():
            return file
    except FileNotFoundError as error:
        cause = error
    raise InputError(
        f"{path} is no .safetensors file, no folder with {WEIGHTS} in it, and can't be loaded from the hub: run "
        f"`hf download facebook/VGGT-1B {WEIGHTS} --local-dir weights/vggt-1b` where there is a network, then give "
        "weights/vggt-1b"
    ) from cause
