"""Tiny VGGTs behind a cache."""

from __future__ import annotations

import os
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from zoo.geometry import CachedGeometry, SceneGeometry, VGGTEncoder

SIZES = dict(embed_dim=16, depth=4, num_heads=2)


def save_vggt(encoder: VGGTEncoder, path: Path) -> None:
    save_file({name: tensor.contiguous() for name, tensor in encoder.vggt.official_state_dict().items()}, path)


def frames(count: int = 3, height: int = 28, width: int = 42, seed: int = 0) -> Tensor:
    """Frames of a video: bytes / 255."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, 3, height, width), generator=generator) / 255


def ask(encoder: CachedGeometry, *scenes: Tensor, **wanted: bool) -> list[SceneGeometry]:
    return encoder(list(scenes), [None] * len(scenes), **wanted)


def with_patches_of(size: int, encoder: CachedGeometry) -> CachedGeometry:
    encoder.match_patches(size)
    return encoder


def same(a: SceneGeometry, b: SceneGeometry) -> bool:
    pairs = [(x, getattr(b, name)) for name, x in vars(a).items()]
    return all(x is y is None or torch.equal(x, y) for x, y in pairs)


def entries(encoder: CachedGeometry) -> list[Path]:
    return sorted(encoder.cache.path.glob("*.safetensors"))


def alter(path: Path, name: str) -> Path:
    """Changes one number of a tensor by one unit in the last place; size and time of the file stay."""
    tensors, status = load_file(path), path.stat()
    changed = tensors[name].clone()
    changed.view(-1)[0] = torch.nextafter(changed.view(-1)[0], torch.tensor(torch.inf))
    save_file(tensors | {name: changed}, path)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert path.stat().st_size == status.st_size
    return path
