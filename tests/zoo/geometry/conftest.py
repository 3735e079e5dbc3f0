"""One thread, as synchronization would dominate for models this small; and a geometry cache."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.zoo.geometry.caching import SIZES, save_vggt
from zoo.geometry import CachedGeometry, GeometryCache, TinyVGGT


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    path = tmp_path / "vggt" / "model.safetensors"
    path.parent.mkdir()
    save_vggt(TinyVGGT(**SIZES), path)
    return path


@pytest.fixture
def cached(weights: Path, tmp_path: Path) -> Callable[..., CachedGeometry]:
    """Makes a new encoder at each call, as another run does, on one folder."""

    def new(path: Path = weights, layers: tuple[int, ...] = (-1,), **cache: object) -> CachedGeometry:
        keep = GeometryCache(str(tmp_path / "cache"), **cache)
        return CachedGeometry(lambda: TinyVGGT(str(path), layers=layers, **SIZES), keep)

    return new
