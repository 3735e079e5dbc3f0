"""Kernels with wrong gradients on some cards are avoided or refused; the cards are pretended."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.tiny import tiny_model
from zoo import SpatialVLM


@pytest.fixture
def cudnn_is_on() -> Iterator[None]:
    torch.backends.cuda.enable_cudnn_sdp(True)
    yield
    torch.backends.cuda.enable_cudnn_sdp(True)


@pytest.mark.parametrize(("version", "is_kept"), [(92000, False), (92501, False), (92600, True), (None, True)])
def test_sdpa_avoids_cudnn_with_nan_gradients(
    version: int | None, is_kept: bool, cudnn_is_on: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a training, and in a model that `from_pretrained` reads."""
    monkeypatch.setattr(torch.backends.cudnn, "version", lambda: version)
    model = tiny_model("plain").model
    assert torch.backends.cuda.cudnn_sdp_enabled() == is_kept
    model.save_pretrained(tmp_path / "saved")
    torch.backends.cuda.enable_cudnn_sdp(True)
    SpatialVLM.from_pretrained(tmp_path / "saved")
    assert torch.backends.cuda.cudnn_sdp_enabled() == is_kept
