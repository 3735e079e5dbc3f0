"""Kernels with wrong gradients on some cards are avoided or refused; the cards are pretended."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from tests.tiny import BACKBONES, tiny_batch, tiny_model
from zoo import ExtraChannels, InputError, PRoPE, SpatialVLM, faulty_kernels
from zoo.backbones.decoder import check_head_channels


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


@pytest.mark.parametrize(
    ("capability", "triton", "has_fla", "is_refused"),
    [
        *((9, version, True, True) for version in ("3.4.0", "3.7.0")),
        *((9, version, True, False) for version in ("3.3.1", "3.7.1")),
        *((9, "3.5.0", False, False), (8, "3.5.0", True, False), (None, "3.5.0", True, False)),
    ],
)
def test_wrong_gradients_of_gated_deltanet_are_refused_and_answers_are_not(
    capability: int | None, triton: str, has_fla: bool, is_refused: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = tiny_model("plain", family="Qwen3.5").train()
    monkeypatch.setattr(faulty_kernels, "compute_capability", lambda: capability)
    monkeypatch.setattr(faulty_kernels, "find_spec", lambda name: object() if has_fla else None)
    monkeypatch.setitem(sys.modules, "triton", SimpleNamespace(__version__=triton))
    training = tiny_batch(task, training=True)
    if is_refused:
        with pytest.raises(InputError, match=f"Triton {triton} computes wrong gradients"):
            task.loss(training)
    else:
        task.loss(training)
    with torch.no_grad():
        task.loss(training)


@pytest.mark.parametrize(("capability", "is_refused"), [(12, True), (10, False), (9, False), (None, False)])
def test_flex_attention_is_refused_where_it_has_no_gradients(
    capability: int | None, is_refused: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Heads of 136 channels are padded to 256, whether the model has them (Qwen3.5) or an encoding appends some."""
    monkeypatch.setattr(faulty_kernels, "compute_capability", lambda: capability)
    check_head_channels("flex_attention", 128)
    check_head_channels("sdpa", 136)
    wide = BACKBONES["Qwen3.5"](layers=4, hidden_size=96, heads=2, attn_implementation="flex_attention")
    tiny = BACKBONES["Qwen2.5-VL"](layers=1, hidden_size=64, heads=2, attn_implementation="flex_attention")
    for loader, encoding in ((wide, None), (tiny, PRoPE(ExtraChannels(104)))):
        backbone = loader.load()
        if is_refused:
            with pytest.raises(InputError, match=r"(192|136) channels on this GPU.*attn_implementation sdpa"):
                backbone.install_encoding(encoding)
        else:
            backbone.install_encoding(encoding)
