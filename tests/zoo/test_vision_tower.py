"""Towers with one attention call per length of run, and patches as matrix products, are the stock towers."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.cases import each_once
from tests.tiny import BACKBONES, FAMILIES
from zoo.backbones.decoder import replace_classes
from zoo.backbones.qwen3_5 import Qwen35Backbone
from zoo.backbones.qwen3_vl import Qwen3VisionRules, Qwen3VLBackbone
from zoo.backbones.qwen25_vl import Qwen25VisionRules, Qwen25VLBackbone
from zoo.backbones.vision import PatchEmbedding, SegmentAttention

# one length of window; lengths of every kind, in stills and videos; a frame smaller than a window
GRIDS = {"equal": [[3, 4, 4]] * 4, "mixed": [[2, 20, 34], [1, 8, 8], [2, 10, 6]], "small": [[1, 2, 2]]}
FAST = {
    "Qwen2.5-VL": Qwen25VLBackbone.vision_classes,
    "Qwen3-VL": Qwen3VLBackbone.vision_classes,
    "Qwen3.5": Qwen35Backbone.vision_classes,
}
families = pytest.mark.parametrize("family", FAMILIES)


def towers(family: str = "Qwen2.5-VL", implementation: str = "sdpa", layers: int = 2) -> tuple[nn.Module, nn.Module]:
    small: dict[str, Any] = dict(layers=1, hidden_size=64, heads=2, key_value_heads=1, vision_hidden_size=64)
    loader = BACKBONES[family](attn_implementation=implementation, vision_layers=layers, **small)
    stock = loader.stock_model().model.visual
    ours = copy.deepcopy(stock)
    replace_classes(ours, FAST[family])
    swapped = [module for module in ours.modules() if isinstance(module, PatchEmbedding | SegmentAttention)]
    assert len(swapped) == 1 + layers
    assert ours.state_dict().keys() == stock.state_dict().keys()
    return stock, ours


def pixels_of(tower: nn.Module, patches: int, **options: Any) -> Tensor:
    channels = tower.patch_embed.proj.weight[0].numel()  # type: ignore[union-attr]
    return torch.randn(patches, channels, generator=torch.Generator().manual_seed(0), **options)


def inputs_of(tower: nn.Module, grid: list[list[int]], from_rules: bool) -> dict[str, Any]:
    """As the stock model computes them in the tower, from the grids; or as our workers do, by the `VisionRules`."""
    if not from_rules:
        return {"grid_thw": torch.tensor(grid)}
    is_qwen3 = hasattr(tower, "num_grid_per_side")
    rules: Any = Qwen3VisionRules.of(tower) if is_qwen3 else Qwen25VisionRules.of(tower.config)
    vision = rules.inputs([tuple(each) for each in grid])
    assert vision.lengths == [math.prod(each) // 4 for each in grid]
    return {"grid_thw": None, **vision.arguments()}


def seen(tower: nn.Module, grid: list[list[int]], from_rules: bool = False) -> tuple[Tensor, dict[str, Tensor]]:
    pixels = pixels_of(tower, sum(math.prod(each) for each in grid))
    tokens = tower(pixels, **inputs_of(tower, grid, from_rules)).pooler_output
    tower.zero_grad()
    tokens.square().sum().backward()
    return tokens.detach(), {name: p.grad for name, p in tower.named_parameters() if p.grad is not None}


@families
@pytest.mark.parametrize(("from_rules", "implementation"), each_once([True, False], ["sdpa", "eager"]))
@pytest.mark.parametrize("grid", GRIDS.values(), ids=GRIDS)
def test_the_stock_tower(grid: list[list[int]], implementation: str, from_rules: bool, family: str) -> None:
    stock, ours = towers(family, implementation)
    tokens, gradients = seen(stock, grid)
    same, same_gradients = seen(ours, grid, from_rules)
    if implementation == "sdpa":
        assert torch.equal(same, tokens)
    torch.testing.assert_close(same, tokens, rtol=0, atol=1e-5)
    assert same_gradients.keys() == gradients.keys() and "patch_embed.proj.weight" in gradients
    for name, gradient in gradients.items():
        torch.testing.assert_close(same_gradients[name], gradient, rtol=1e-4, atol=1e-5 * float(gradient.abs().max()))


@families
def test_patches_and_their_gradient_are_the_convolutions(family: str) -> None:
    """In float64, on a CPU and as on a GPU; of the pixels as well, which nothing here asks for."""
    stock, ours = (tower.double() for tower in towers(family))
    seen_by = []
    for embed in (stock.patch_embed, ours.patch_embed, ours.patch_embed.multiply):  # type: ignore[union-attr]
        stock.zero_grad()
        ours.zero_grad()
        pixels = pixels_of(stock, 5, dtype=torch.float64, requires_grad=True)
        tokens = embed(pixels)  # type: ignore[operator]
        tokens.square().sum().backward()
        gradients = [each.grad for tower in (stock, ours) for each in tower.patch_embed.parameters()]
        seen_by.append((tokens, pixels.grad, *(each for each in gradients if each is not None)))
    assert len(seen_by[0]) == (3 if family == "Qwen2.5-VL" else 4)  # the others' have a bias
    for found in seen_by[1:]:
        torch.testing.assert_close(found, seen_by[0], rtol=1e-10, atol=1e-10)


@families
@pytest.mark.parametrize("grid", GRIDS.values(), ids=GRIDS)
def test_calls_are_by_length(grid: list[list[int]], family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    stock_sdpa = nn.functional.scaled_dot_product_attention

    def counted(*args: Tensor, **kwargs: object) -> Tensor:
        calls.append(len(args[0]))
        return stock_sdpa(*args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(nn.functional, "scaled_dot_product_attention", counted)
    stock, ours = towers(family)
    with torch.no_grad():
        seen_by = []
        for tower in (stock, ours):
            calls.clear()
            patches = pixels_of(tower, sum(math.prod(each) for each in grid))
            tower(patches, **inputs_of(tower, grid, tower is ours))
            seen_by.append(list(calls))
    assert sum(seen_by[0]) == sum(seen_by[1]) == len(seen_by[0])  # every window, and stock makes a call for each
    # frames have one length per size of a video; windows of frames of any size have at most six here
    lengths = len({tuple(each[1:]) for each in grid}) if family != "Qwen2.5-VL" else 6
    assert len(seen_by[1]) <= lengths * len(ours.blocks)  # type: ignore[arg-type]
