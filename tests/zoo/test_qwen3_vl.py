"""Qwen3-VL: equal to the stock model, DeepStack beside fusions, and a video of several spans."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from tests.zoo import showing
from tests.zoo.showing import SAMPLES
from zoo import SpatialVLM
from zoo.backbones import TinyQwen3VL

pytestmark = pytest.mark.usefixtures("one_thread")
SHOWN = ("a video", "two videos", "stills", "stills and videos")


def tiny(**options: Any) -> TinyQwen3VL:
    return TinyQwen3VL(layers=3, hidden_size=64, heads=2, key_value_heads=1, vision_hidden_size=32, **options)


def stock_inputs(model: SpatialVLM, given: dict[str, Any]) -> dict[str, Any]:
    """What the stock model takes: it finds the positions itself."""
    names = ("input_ids", "attention_mask", "pixel_values", "image_grid_thw", "pixel_values_videos", "video_grid_thw")
    found = {name: given[name] for name in names if name in given}
    video, image, *_ = model.backbone.placeholders
    kinds = (given["input_ids"] == image).int() + 2 * (given["input_ids"] == video).int()
    return {**found, "mm_token_type_ids": kinds}


def loss(logits: Tensor, given: dict[str, Any]) -> Tensor:
    return F.cross_entropy(
        logits[given["attention_mask"].bool()].float(), given["input_ids"][given["attention_mask"].bool()]
    )


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("samples", [*([name] for name in SHOWN), SHOWN, (*SHOWN, "text")], ids=", ".join)
def test_logits_and_gradients_are_the_stock_models(samples: list[str], attention: str) -> None:
    """Left-padded, with videos, pictures, and both."""
    loader = tiny(attn_implementation=attention)
    stock, ours = loader.stock_model(), SpatialVLM(loader)
    given = showing.batch(ours, [SAMPLES[name] for name in samples])
    real = given["attention_mask"].bool()
    expected = stock(**stock_inputs(ours, given)).logits
    found = ours.logits(**given)
    torch.testing.assert_close(found[real], expected[real], rtol=0, atol=1e-6)
    loss(expected, given).backward()
    loss(found, given).backward()
    gradients = {name: p.grad for name, p in stock.named_parameters() if p.grad is not None}
    assert any("deepstack_merger_list" in name for name in gradients)
    for name, parameter in ours.backbone.vlm.named_parameters():
        if name in gradients:
            torch.testing.assert_close(parameter.grad, gradients[name], rtol=1e-4, atol=1e-6, msg=name)
        else:
            assert parameter.grad is None or not parameter.grad.any()


def test_greedy_answers_are_the_stock_models() -> None:
    loader = tiny()
    stock, ours = loader.stock_model().eval(), SpatialVLM(loader).eval()
    for model in (stock, ours.backbone.vlm):
        for parameter in model.parameters():  # sharper than at the start, so that answers differ
            if parameter.ndim == 2:
                torch.nn.init.normal_(
                    parameter, std=parameter.shape[1] ** -0.5, generator=torch.Generator().manual_seed(1)
                )
    given = showing.batch(ours, [SAMPLES[name] for name in SHOWN])
    length = given["input_ids"].shape[1]
    stop = loader.config.text_config.eos_token_id
    options = dict(max_new_tokens=6, do_sample=False, eos_token_id=None, pad_token_id=0)
    expected = stock.generate(**stock_inputs(ours, given), **options)[:, length:].tolist()
    expected = [row[: row.index(stop) + 1] if stop in row else row for row in expected]
    assert ours.generate_ids(**given, max_new_tokens=6) == expected
    assert len({tuple(row) for row in expected}) > 2
