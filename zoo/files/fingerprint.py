"""Fingerprints of values, tensors and files. Equal content gives equal text.

They are recorded in checkpoints, exported folders, caches, selections of frames and results of studies, so their
algorithms must not change. No other file of the library computes a hash.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

DIGITS = 32  # hexadecimal digits, 128 bits
SAMPLES, SAMPLE_BYTES = 32, 1 << 15  # samples of a file
# samples of each file in a folder; a PNG ends with a checksum of all of its pixels
FOLDER_SAMPLES, FOLDER_SAMPLE_BYTES = 2, 1 << 12


def fingerprint(content: Any) -> str:
    """Return the SHA-256 of a value in memory, shortened to 128 bits.

    Args:
        content: One of a tensor, by dtype, shape and values, bit for bit; a module or named tensors, by name, dtype,
            shape and values of each, which takes 4 s for 3 billion parameters in bfloat16. For a sharded model this is
            a collective, which every process must call; bytes; an iterator of texts; any other JSON-like value, with
            keys in any order.
    """
    digest = hashlib.sha256()
    for part in _parts(content):
        digest.update(part)
    return digest.hexdigest()[:DIGITS]


def file_fingerprint(path: Path) -> str:
    """Return the fingerprint of a file (size and even samples) or of a folder (name, size and ends of each file).

    Reading a whole video would take longer than decoding a few of its frames. The samples have 1 MiB in total, so a
    smaller file is read completely. A copy has the same fingerprint as its original.
    """
    is_folder = path.is_dir()
    files = sorted(file for file in path.iterdir() if file.is_file()) if is_folder else [path]
    samples, length = (FOLDER_SAMPLES, FOLDER_SAMPLE_BYTES) if is_folder else (SAMPLES, SAMPLE_BYTES)
    digest = hashlib.sha256()
    for file in files:
        size = file.stat().st_size
        digest.update(f"{file.name if is_folder else ''}/{size};".encode())
        with file.open("rb", buffering=0) as stream:
            for start in sorted({max(0, size - length) * sample // (samples - 1) for sample in range(samples)}):
                stream.seek(start)
                digest.update(stream.read(length))
    return digest.hexdigest()[:DIGITS]


def content_fingerprint(path: Path) -> str:
    """Return the fingerprint of all bytes of a file, which takes some seconds for 10 GB.

    It is for weights, because a training may change a few tensors that no sample covers.
    """
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:DIGITS]


def _parts(content: Any) -> Iterator[Any]:
    """Yield bytes that represent a value in memory."""
    # if torch is not imported there are no tensors, and JSON does not need an import that takes seconds
    torch = sys.modules.get("torch")
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
    """Return the memory of a tensor. A sharded tensor is gathered."""
    whole = tensor.detach()
    whole = whole.full_tensor() if hasattr(whole, "full_tensor") else whole
    return whole.cpu().contiguous().reshape(-1).view(sys.modules["torch"].uint8).numpy().data
