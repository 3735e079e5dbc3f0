"""A folder of computed geometry: one safetensors file per scene and kind, with a limit on its size."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from jaxtyping import Float, Shaped
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from zoo.cameras.scene_geometry import TOKENS
from zoo.errors import check_choice
from zoo.files.atomic_io import replace_file
from zoo.files.cache_folder import CacheFolder, Description
from zoo.files.fingerprint import CONTENT_DIGITS, content_fingerprint, fingerprint

Packed = dict[str, Tensor]  # the tensors of a file
TokenDType = Literal["bfloat16", "float8"]

SCALE = ".scale"
FLOAT8 = torch.float8_e4m3fn


@dataclass
class GeometryCache:
    """A folder of entries shared by processes, runs and models; evicts the least recently used entry.

    The name of an entry is a digest of everything that it depends on, so that no stale entry is ever found. Files are
    written whole or not at all, and a damaged file counts as absent: its entry is computed again.

    Frames drawn anew in each epoch (`RandomSampler`) are never found again: they fill the folder up to its limit and
    evict the entries of other runs. Train with a sampler that chooses the same frames, `--data.train_sampler null`.

    Args:
        folder: Where the entries are kept.
        dtype: Of 3D tokens; poses and intrinsics are kept exactly. `float8` (e4m3, one scale per token) takes half the
            space; benchmarks/README.md has its error.
        max_size_gb: Limit on the size of all entries, in 1e9 bytes. Each further process may exceed it by 1/64,
            or by one entry.

    Raises:
        InputError: A limit that is not positive, or another dtype.
    """

    folder: str = "cache/geometry"
    dtype: TokenDType = "bfloat16"
    max_size_gb: float = 100.0

    def __post_init__(self) -> None:
        check_choice("--model.geometry_cache.dtype", self.dtype, TokenDType)
        self._entries = CacheFolder(self.folder, self.max_size_gb, "--model.geometry_cache")

    @property
    def path(self) -> Path:
        """The folder."""
        return self._entries.path

    def file(self, entry: Description) -> Path:
        """The file of an entry, which may not exist."""
        return self._entries.file(entry)

    def get(self, entry: Description) -> Packed | None:
        """Read an entry and mark it as used now; None if there is no sound one."""
        path = self.file(entry)
        try:
            with safe_open(path, framework="pt") as file:
                packed = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is no dict
                sound = file.metadata() == metadata(entry, packed)
        except (OSError, SafetensorError, RuntimeError):  # absent, cut short, or evicted before torch opened it too
            return None
        if not sound:
            return None
        self._entries.mark_used(entry)
        return packed

    def put(self, entry: Description, packed: Packed) -> None:
        """Write an entry, after making room for it.

        Raises:
            InputError: The entry alone exceeds the limit.
            OSError: It can't be written; the former file is kept.
        """
        self._entries.write(entry, save(packed, metadata(entry, packed)))

    def file_fingerprint(self, weights: Path) -> str:
        """`content_fingerprint` of a file; kept in this folder, so that a file is read again only if it has changed."""
        status = weights.stat()
        state = [str(weights.resolve()), status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns]
        known = self.path / "weights" / fingerprint(state)
        with suppress(OSError):
            if len(text := known.read_text()) == CONTENT_DIGITS:
                return text
        found = content_fingerprint(weights)
        with suppress(OSError):
            replace_file(known, found.encode())
        return found


def metadata(entry: Description, packed: Packed) -> dict[str, str]:
    """The header of a file: its description, and a checksum, as safetensors detects only files that were cut short."""
    return {"entry": json.dumps({**entry, "checksum": fingerprint(packed)}, sort_keys=True)}


def pack(tensors: Mapping[str, Tensor], dtype: TokenDType) -> Packed:
    """Round 3D tokens to half precision; return CPU tensors that own their memory."""
    packed = {}
    for name, tensor in tensors.items():
        if name in TOKENS and dtype == "float8":
            packed[name], packed[name + SCALE] = to_float8(tensor)
        else:
            packed[name] = tensor.bfloat16() if name in TOKENS else tensor
    return {name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format) for name, tensor in packed.items()}


def unpack(packed: Packed) -> dict[str, Tensor]:
    """The inverse of `pack`; 3D tokens are bfloat16."""
    plain = {name: tensor for name, tensor in packed.items() if not name.endswith(SCALE)}
    scaled = {name: (plain[name].float() * packed[name + SCALE]).bfloat16() for name in plain if name + SCALE in packed}
    return plain | scaled


def to_float8(tokens: Float[Tensor, "*rest D"]) -> tuple[Shaped[Tensor, "*rest D"], Float[Tensor, "*rest 1"]]:
    """Round to e4m3 with one scale per token, which maps its largest channel to e4m3's maximum; error at most 6 %."""
    tokens = tokens.float()
    largest = tokens.abs().amax(-1, keepdim=True).clamp(min=torch.finfo(torch.float32).tiny)
    scale = largest / torch.finfo(FLOAT8).max
    return (tokens / scale).to(FLOAT8), scale
