"""One thread, for tests that are small and whose bits depend on the order of sums; a tiny release."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.zoo.released import TINY_DINO, tiny_release, write_release
from zoo.geometry.vggt.aggregator import DINOV2


@pytest.fixture
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def tiny_dino(monkeypatch: pytest.MonkeyPatch) -> None:
    """The DINOv2 of a tiny release is known by its name."""
    monkeypatch.setitem(DINOV2, "tiny", TINY_DINO)


@pytest.fixture
def release(tmp_path: Path, tiny_dino: None) -> Path:
    """The folder of a tiny Spatial-MLLM as it is released."""
    write_release(tmp_path / "release", *tiny_release())
    return tmp_path / "release"
