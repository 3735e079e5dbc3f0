"""A pretrained decoder is disturbed by cameras, and not by identity cameras; nothing of it stays in the model."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
import yaml
from torch.nn import functional as F

from commands.check_encoding import check_encoding
from commands.disturbance import PosedText, Row, VideoAnswers, installed, measure, powers, random_axes, rows
from commands.disturbance import same, without_encoding  # fmt: skip
from commands.runs import load_run
from tests.cli import Run, Trained
from zoo import (
    GTA,
    ExtraChannels,
    FrequencyRange,
    InputError,
    LayerSubset,
    LowFrequencies,
    PointRoPE,
    PoseALiBi,
    PoseAxis,
    PoseIndex,
    PRoPE,
    PretrainedQwen25VL,
    RayRoPE,
    SpatialVLM,
    TemporalSection,
    TinyQwen25VL,
    UnrotatedChannels,
    ValueRoPE,
)
from zoo.backbones.qwen25_vl import tiny_processor
from zoo.encodings import CameraEncoding

HALF, IDENTITY = partial(powers, 0.5, 0.5, 0.5), partial(powers, 0, 0, 0)


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A released folder of a tiny decoder that has learned the passages by heart."""
    torch.manual_seed(0)
    model = SpatialVLM(TinyQwen25VL(layers=3, hidden_size=64, heads=2, key_value_heads=1, vision_hidden_size=32))
    tokenize, backbone = model.backbone.preprocessor.tokenize, model.backbone
    passages = PosedText.PASSAGES.read_text(encoding="utf-8").split("\n\n")
    ids = torch.stack([tokenize([text], (), model.extra_tokens).input_ids[:256] for text in passages])
    position_ids = torch.arange(256).expand(3, len(ids), 256)
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    for _ in range(60):
        states = backbone.decode({"inputs_embeds": backbone.embed(ids), "position_ids": position_ids})
        loss = F.cross_entropy(backbone.lm_head(states.last_hidden_state[:, :-1]).mT, ids[:, 1:])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    folder = tmp_path_factory.mktemp("release")
    backbone.vlm.save_pretrained(folder)
    tiny_processor().save_pretrained(folder)
    return folder


@pytest.fixture
def text(release: Path) -> PosedText:
    return PosedText(SpatialVLM(PretrainedQwen25VL(str(release), dtype="float32")).requires_grad_(False).eval())


def rise(reading: PosedText, make: Callable[[], CameraEncoding], **changes) -> torch.Tensor:
    return reading.losses(Row("", make, **changes)) - reading.losses(Row("", None))


def test_cameras_disturb_and_identity_cameras_do_not(text: PosedText) -> None:
    stock = text.losses(Row("", None))
    assert stock.mean() < 3 and len(stock) == 8  # the decoder has learned something
    assert torch.equal(rise(text, PRoPE, change=IDENTITY), torch.zeros(8))
    half, full = (rise(text, PRoPE, change=change).mean() for change in (HALF, same))
    assert 0 < half < full and full > 0.1
    turned, other = rise(text, PRoPE, change=random_axes).mean(), rise(text, PRoPE, other_scene=True).mean()
    assert turned > 0.1 and other > 0.1 and len({float(each) for each in (full, turned, other)}) == 3
    print(stock.mean(), half, full, turned, other)
