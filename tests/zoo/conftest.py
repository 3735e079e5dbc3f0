"""A tiny Spatial-MLLM as it is released."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.zoo.released import TINY_DINO, tiny_release, write_release
from zoo.geometry.vggt import DINOV2


@pytest.fixture
def tiny_dino(monkeypatch: pytest.MonkeyPatch) -> None:
    """The DINOv2 of a tiny release is known by its name."""
    monkeypatch.setitem(DINOV2, "tiny", TINY_DINO)


@pytest.fixture(scope="session")
def written_release(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that `release` copies."""
    folder = tmp_path_factory.mktemp("released") / "release"
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(DINOV2, "tiny", TINY_DINO)
        write_release(folder, *tiny_release())
    return folder


@pytest.fixture
def release(tmp_path: Path, written_release: Path, tiny_dino: None) -> Path:
    """The folder of a tiny Spatial-MLLM as it is released."""
    return shutil.copytree(written_release, tmp_path / "release")
