"""Spatial-MLLM against numbers from the published code; set ZOO_GOLDEN to the whole set to run every case."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.zoo.released import CASES, build, check_case, load_case, media


@pytest.mark.parametrize("case", [case for case in CASES if not case.startswith("qwen")])
def test_logits_loss_gradients_and_answers(case: str) -> None:
    check_case(case)


def other_layer(config: dict[str, Any], official: dict[str, Tensor]) -> None:
    config["connector_config"]["spatial_embeds_layer_idx"] = 0


def swapped_camera_tokens(config: dict[str, Any], official: dict[str, Tensor]) -> None:
    name = "spatial_encoder.vggt_model.aggregator.camera_token"
    official[name] = official[name].flip(1)


@pytest.mark.parametrize("mistake", [other_layer, swapped_camera_tokens])
def test_a_mistake_in_the_geometry_shows(mistake: Callable[..., None]) -> None:
    from zoo.checkpoints import load_spatial_mllm

    meta, t = load_case("one_video")
    _, official = build(meta)
    mistake(meta["config"], official)
    model = load_spatial_mllm(meta["config"], official)
    with torch.no_grad():
        logits = model.logits(t["input_ids"], t["attention_mask"], **media(t, meta))
    assert (logits - t["out_logits"]).abs().max() > 0.05
