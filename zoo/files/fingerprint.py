"""Fingerprints of values, tensors and files: equal content, equal text.

They are recorded in checkpoints, exported folders, geometry caches, selections of frames and results of studies, so
their algorithms stay. No other file of the library computes a hash.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

DIGITS = 32  # hexadecimal: 128 bits
FILE_ENDS_BYTES = 1 << 16  # head and tail of a single file
FOLDER_ENDS_BYTES = 1 << 12  # head and tail of each file of a folder; a PNG ends in a checksum of all of its pixels
CONTENT_DIGITS = 64  # of `content_fingerprint`
SAMPLES, SAMPLE_BYTES = 32, 1 << 15  # of `sampled_fingerprint`


def fingerprint(content: Any) -> str:
    """Return the SHA-256, cut to 128 bits, of something in memory.

    Args:
        content: One of
            a tensor, by dtype, shape and values, bit for bit;
            a module or named tensors, by the same of each and its name: some 4 s for 3 billion parameters in bfloat16.
            Of a sharded model it is a collective, which every process must call;
            bytes;
            an iterator of texts;
            any other JSON-like value, whatever the order of its keys.
    """
    digest = hashlib.sha256()
    for part in _parts(content):
        digest.update(part)
    return digest.hexdigest()[:DIGITS]


def file_fingerprint(path: Path) -> str:
    """Return the fingerprint of a file by size, head and tail; of a folder by the names and fingerprints of its files.

    Reading a whole video would take longer than decoding a few of its frames. A copy has the fingerprint of its
    original.
    """
    is_folder = path.is_dir()
    files = sorted(file for file in path.iterdir() if file.is_file()) if is_folder else [path]
    ends = FOLDER_ENDS_BYTES if is_folder else FILE_ENDS_BYTES
    digest = hashlib.blake2b(digest_size=DIGITS // 2)
    for file in files:
        size = file.stat().st_size
        digest.update(f"{file.name if is_folder else ''}/{size};".encode())
        with file.open("rb") as stream:
            digest.update(stream.read(ends))
            stream.seek(max(0, size - ends))
            digest.update(stream.read(ends))
    return digest.hexdigest()


def sampled_fingerprint(path: Path) -> str:
    """Return the fingerprint of a file by size and even samples of 1 MiB in all; a smaller file is read whole.

    Uncompressed videos of other content may have the same size, head and tail.
    """
    size = path.stat().st_size
    digest = hashlib.blake2b(f"{size};".encode(), digest_size=DIGITS // 2)
    with path.open("rb", buffering=0) as stream:
        for sample in range(SAMPLES):
            stream.seek(max(0, size - SAMPLE_BYTES) * sample // (SAMPLES - 1))
            digest.update(stream.read(SAMPLE_BYTES))
    return digest.hexdigest()


def content_fingerprint(path: Path) -> str:
    """Return the SHA-256 of a whole file: some seconds for 10 GB."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _parts(content: Any) -> Iterator[Any]:
    """Yield the bytes that stand for something in memory."""
    torch = sys.modules.get("torch")  # without it there are no tensors, and JSON needs no import of seconds
    if torch is not None and isinstance(content, torch.nn.Module):
        yield from _parts_of_tensors(content.state_dict())
    elif torch is not None and isinstance(content, torch.Tensor):
        yield f"{content.dtype} {tuple(content.shape)};".encode()
        yield _bytes_of(content)
    elif torch is not None and _are_named_tensors(content):
        yield from _parts_of_tensors(content)
    elif isinstance(content, bytes):
        yield content
    elif isinstance(content, Iterator):
        for text in content:
            yield f"{text}\0".encode(errors="backslashreplace")
    else:
        yield json.dumps(content, sort_keys=True).encode()


def _are_named_tensors(content: Any) -> bool:
    tensor = sys.modules["torch"].Tensor
    return isinstance(content, Mapping) and bool(content) and all(isinstance(each, tensor) for each in content.values())


def _parts_of_tensors(tensors: Mapping[str, Any]) -> Iterator[Any]:
    for name, tensor in sorted(tensors.items()):
        yield f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode()
        yield _bytes_of(tensor)


def _bytes_of(tensor: Any) -> Any:
    """Return the memory of a tensor; of one in shards the whole."""
    whole = tensor.detach()
    whole = whole.full_tensor() if hasattr(whole, "full_tensor") else whole
    return whole.cpu().contiguous().reshape(-1).view(sys.modules["torch"].uint8).numpy().data
