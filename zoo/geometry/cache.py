"""Geometry on disk: a safetensors file for each thing that was once found out about the frames of a scene."""

from __future__ import annotations

import hashlib
import json
import math
import os
import time
import uuid
import zlib
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Float, Shaped
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from zoo.errors import InputError
from zoo.weights import raw_bytes

Packed = dict[str, Tensor]  # as it lies on disk
Description = Mapping[str, Any]  # everything that an entry depends on; JSON

TOKENS = ("patches", "camera_tokens")  # kept in half precision; everything else exactly
SCALE = ".scale"
FLOAT8 = torch.float8_e4m3fn
ENTRY, PARTIAL = ".safetensors", ".partial"
ABANDONED_S = 3600  # no entry takes an hour to write
SHARE = 64  # of the limit, written between two looks at how full the folder is


@dataclass
class GeometryCache:
    """A folder of entries that processes, runs and models share; what was not read for longest makes room.

    An entry's name is a digest of all that it depends on, so that a stale one is never found. Each is written whole or
    not at all, and one that was cut short or damaged later counts as absent: it is made again.

    Frames drawn anew in each epoch (`RandomSampler`) are never found again: the folder then grows to its limit, and
    the entries of other runs go. Train with a sampler that chooses the same frames, `--data.train_sampler null`.

    Args:
        folder: where the entries lie.
        dtype: of 3D tokens; poses and intrinsics are kept as they are. `float8` (e4m3, a scale a token) takes half the
            space; what it costs is in benchmarks/README.md.
        max_size_gb: the most that all entries may take, in 1e9 bytes. Each further process may go over it by a 64th.

    Raises:
        InputError: a limit that nothing fits in.
    """

    folder: str = "cache/geometry"
    dtype: Literal["bfloat16", "float8"] = "bfloat16"
    max_size_gb: float = 100.0

    def __post_init__(self) -> None:
        if not self.max_size_gb > 0:
            raise InputError(f"--model.geometry_cache.max_size_gb {self.max_size_gb}: nothing fits in there")
        self._unseen = math.inf  # bytes written since the folder was last looked at

    @property
    def path(self) -> Path:
        return Path(self.folder).expanduser()

    def file(self, entry: Description) -> Path:
        """Where it lies, if it is there."""
        return self.path / f"{digest(entry)}{ENTRY}"

    def get(self, entry: Description) -> Packed | None:
        """An entry; None if there is no sound one. It is then the one that was read last."""
        path = self.file(entry)
        try:
            with safe_open(path, framework="pt") as file:
                packed = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is no dict
                sound = file.metadata() == metadata(entry, packed)
        except (OSError, SafetensorError):  # absent or cut short
            return None
        if not sound:
            return None
        with suppress(OSError):  # evicted in this moment, or in a folder of others
            os.utime(path)
        return packed

    def put(self, entry: Description, packed: Packed) -> None:
        """Writes an entry, and makes room for it before.

        Raises:
            InputError: it alone is over the limit.
            OSError: it can't be written; what was there before is still there.
        """
        content = save(packed, metadata(entry, packed))
        self._make_room(len(content))
        write_whole(self.file(entry), content)

    def _make_room(self, size: int) -> None:
        limit = int(self.max_size_gb * 1e9)
        if size > limit:
            raise InputError(
                f"one scene takes {size / 1e9:.3g} GB: raise --model.geometry_cache.max_size_gb {self.max_size_gb:g}"
            )
        self._unseen += size
        if self._unseen <= limit // SHARE:
            return
        self._unseen = size
        entries = []
        for path in self.path.glob("*"):
            with suppress(OSError):  # another process has evicted it
                status = path.stat()
                if path.suffix == ENTRY:
                    entries.append((status.st_mtime_ns, status.st_size, path))
                elif path.suffix == PARTIAL and status.st_mtime < time.time() - ABANDONED_S:
                    path.unlink()  # of a process that was killed
        full = sum(size for _, size, _ in entries)
        for _, freed, path in sorted(entries):
            if full <= limit - max(size, limit // SHARE):
                break
            with suppress(OSError):
                path.unlink()
            full -= freed

    def fingerprint(self, weights: Path) -> str:
        """SHA-256 of a file, which is read only if this folder doesn't know it yet, or it has changed since."""
        status = weights.stat()
        seen = [str(weights.resolve()), status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns]
        known = self.path / "weights" / digest(seen)
        with suppress(OSError):
            if len(text := known.read_text()) == 2 * hashlib.sha256().digest_size:
                return text
        with weights.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        with suppress(OSError):
            write_whole(known, found.encode())
        return found


def digest(content: Any) -> str:
    """A name for JSON-like content: equal for equal content."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:32]


def metadata(entry: Description, packed: Packed) -> dict[str, str]:
    """What a file says of itself: what it depends on, and its checksum."""
    return {"entry": json.dumps({**entry, "checksum": checksum(packed)}, sort_keys=True)}


def checksum(tensors: Packed) -> str:
    """CRC-32 of names, shapes and numbers: safetensors sees what was cut short, not what was altered."""
    value = 0
    for name, tensor in sorted(tensors.items()):
        value = zlib.crc32(f"{name} {tensor.dtype} {tuple(tensor.shape)};".encode(), value)
        value = zlib.crc32(raw_bytes(tensor), value)
    return f"{value:08x}"


def write_whole(path: Path, content: bytes) -> None:
    """Writes a file, whole or not at all, however many processes write it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{uuid.uuid4().hex}{PARTIAL}")
    try:
        partial.write_bytes(content)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


# ---- as it lies on disk -------------------------------------------------------------------------------------


def pack(tensors: Mapping[str, Tensor], dtype: Literal["bfloat16", "float8"]) -> Packed:
    """3D tokens in half precision, everything else as it is; on the CPU, each in memory of its own."""
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
    """e4m3 with a scale a token, by which its largest channel is the largest number; a half unit is 6 % at most."""
    tokens = tokens.float()
    largest = tokens.abs().amax(-1, keepdim=True).clamp(min=torch.finfo(torch.float32).tiny)
    scale = largest / torch.finfo(FLOAT8).max
    return (tokens / scale).to(FLOAT8), scale
