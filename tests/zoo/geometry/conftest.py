"""One thread, as synchronization would dominate for models this small; and a geometry cache."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.zoo.geometry.caching import SIZES, save_vggt
from zoo.geometry import CachedGeometry, GeometryCache, TinyVGGT


@pytest.fixture(scope="session")
def saved_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file that `weights` copies."""
    path = tmp_path_factory.mktemp("vggt") / "model.safetensors"
    save_vggt(TinyVGGT(**SIZES), path)
    return path


@pytest.fixture
def weights(tmp_path: Path, saved_weights: Path) -> Path:
    (tmp_path / "vggt").mkdir()
    return Path(shutil.copy(saved_weights, tmp_path / "vggt"))


@pytest.fixture
def cached(weights: Path, tmp_path: Path) -> Callable[..., CachedGeometry]:
    """Makes a new encoder at each call, as another run does, on one folder."""

    def new(path: Path = weights, layers: tuple[int, ...] = (-1,), **cache: object) -> CachedGeometry:
        keep = GeometryCache(str(tmp_path / "cache"), **cache)
        return CachedGeometry(lambda: TinyVGGT(str(path), layers=layers, **SIZES), keep)

    return new
