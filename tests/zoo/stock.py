"""A model of the zoo beside the stock one of transformers, on sequences with videos and pictures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from tests.zoo import showing
from tests.zoo.showing import SAMPLES
from zoo import SpatialVLM
from zoo.backbones.qwen_vl import TinyQwenVL

SHOWN = ("a video", "two videos", "stills", "stills and videos")


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


def compare_with_stock(loader: TinyQwenVL, samples: Sequence[str], atol: float) -> tuple[SpatialVLM, dict[str, Tensor]]:
    """Check the logits; the model after a backward pass, and the gradients of the stock one."""
    stock, ours = loader.stock_model(), SpatialVLM(loader)
    given = showing.batch(ours, [SAMPLES[name] for name in samples])
    real = given["attention_mask"].bool()
    expected = stock(**stock_inputs(ours, given)).logits
    found = ours.logits(**given)
    torch.testing.assert_close(found[real], expected[real], rtol=0, atol=atol)
    loss(expected, given).backward()
    loss(found, given).backward()
    return ours, {name: p.grad for name, p in stock.named_parameters() if p.grad is not None}


def greedy_as_stock(loader: TinyQwenVL, samples: Sequence[str]) -> set[tuple[int, ...]]:
    """Check the greedy answers; those that differ."""
    stock, ours = loader.stock_model().eval(), SpatialVLM(loader).eval()
    for model in (stock, ours.backbone.vlm):
        for parameter in model.parameters():  # sharper than at the start, so that answers differ
            if parameter.ndim == 2:
                generator = torch.Generator().manual_seed(1)
                torch.nn.init.normal_(parameter, std=parameter.shape[1] ** -0.5, generator=generator)
    given = showing.batch(ours, [SAMPLES[name] for name in samples])
    length = given["input_ids"].shape[1]
    options = dict(max_new_tokens=6, do_sample=False, eos_token_id=None, pad_token_id=0)
    expected = stock.generate(**stock_inputs(ours, given), **options)[:, length:].tolist()
    stop = loader.config.text_config.eos_token_id
    expected = [row[: row.index(stop) + 1] if stop in row else row for row in expected]
    assert ours.generate_ids(**given, max_new_tokens=6) == expected
    return {tuple(row) for row in expected}
