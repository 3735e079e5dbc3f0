"""Digests of settings, files and tensors: equal content, equal text."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

DIGEST_LENGTH = 32  # hexadecimal digits: 128 bits
FILE_ENDS_BYTES = 1 << 16  # head and tail of a single file
FOLDER_ENDS_BYTES = 1 << 12  # head and tail of each file of a folder; a PNG ends in a checksum of all of its pixels


def digest(content: Any) -> str:
    """Digest of JSON-like content, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:DIGEST_LENGTH]


def file_fingerprint(path: Path) -> str:
    """Fingerprint of a file by size, head and tail; of a folder by the names and fingerprints of its files.

    Reading a whole video would take longer than decoding a few of its frames. A copy has the fingerprint of its
    original.
    """
    is_folder = path.is_dir()
    files = sorted(file for file in path.iterdir() if file.is_file()) if is_folder else [path]
    ends = FOLDER_ENDS_BYTES if is_folder else FILE_ENDS_BYTES
    content = hashlib.blake2b(digest_size=16)  # recorded in the selection files of earlier versions: keep the algorithm
    for file in files:
        size = file.stat().st_size
        content.update(f"{file.name if is_folder else ''}/{size};".encode())
        with file.open("rb") as stream:
            content.update(stream.read(ends))
            stream.seek(max(0, size - ends))
            content.update(stream.read(ends))
    return content.hexdigest()


def tensor_fingerprint(tensor: Tensor) -> str:
    """Fingerprint of a tensor's dtype, shape and values, bit for bit."""
    import torch

    content = hashlib.sha256(f"{tensor.dtype} {tuple(tensor.shape)};".encode())
    content.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return content.hexdigest()[:DIGEST_LENGTH]
