"""The tower with one attention call a length of window, and another gradient of its patches, is the stock tower."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from zoo.backbones.qwen25_vl.tiny import TinyQwen25VL
from zoo.backbones.qwen25_vl.vision_rules import Qwen25VisionRules
from zoo.backbones.qwen25_vl.vision_tower import PatchEmbedding, WindowAttention, install_fast_vision
from zoo.sequences.vision_inputs import Segments

# one length of window; lengths of every kind, in stills and videos; a frame smaller than a window
GRIDS = {"equal": [[3, 4, 4]] * 4, "mixed": [[2, 20, 34], [1, 8, 8], [2, 10, 6]], "small": [[1, 2, 2]]}


def towers(implementation: str = "sdpa") -> tuple[nn.Module, nn.Module]:
    stock = TinyQwen25VL(attn_implementation=implementation).stock_model().model.visual  # type: ignore[arg-type]
    ours = copy.deepcopy(stock)
    install_fast_vision(ours)
    swapped = [type(module) for module in ours.modules() if isinstance(module, PatchEmbedding | WindowAttention)]
    assert swapped == [PatchEmbedding, *[WindowAttention] * (len(swapped) - 1)] and len(swapped) > 1
    assert ours.state_dict().keys() == stock.state_dict().keys()
    return stock, ours


def inputs_of(tower: nn.Module, grid: list[list[int]], from_rules: bool) -> dict[str, Any]:
    """As the stock model computes them in the tower, from the grids; or as our workers do, by `Qwen25VisionRules`."""
    if not from_rules:
        return {"grid_thw": torch.tensor(grid)}
    vision = Qwen25VisionRules.of(tower.config).inputs([tuple(each) for each in grid])  # type: ignore[misc]
    assert vision.lengths == [math.prod(each) // 4 for each in grid]
    return {"grid_thw": None, **vision.arguments()}


def seen(tower: nn.Module, grid: list[list[int]], from_rules: bool = False) -> tuple[Tensor, dict[str, Tensor]]:
    patches = sum(math.prod(each) for each in grid)
    pixels = torch.randn(patches, 1176, generator=torch.Generator().manual_seed(0))
    tokens = tower(pixels, **inputs_of(tower, grid, from_rules)).pooler_output
    tower.zero_grad()
    tokens.square().sum().backward()
    return tokens.detach(), {name: p.grad for name, p in tower.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("from_rules", [False, True])
@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@pytest.mark.parametrize("grid", GRIDS.values(), ids=GRIDS)
def test_the_stock_tower(grid: list[list[int]], implementation: str, from_rules: bool) -> None:
    stock, ours = towers(implementation)
    tokens, gradients = seen(stock, grid)
    same, same_gradients = seen(ours, grid, from_rules)
    if implementation == "sdpa":
        assert torch.equal(same, tokens)
    torch.testing.assert_close(same, tokens, rtol=0, atol=1e-5)
    assert same_gradients.keys() == gradients.keys() and "patch_embed.proj.weight" in gradients
    for name, gradient in gradients.items():
        torch.testing.assert_close(same_gradients[name], gradient, rtol=1e-4, atol=1e-5 * float(gradient.abs().max()))


def test_the_gradient_of_the_patches_is_the_convolutions() -> None:
    """In float64, of the pixels as well, which nothing here asks for."""
    stock, ours = (tower.patch_embed.double() for tower in towers())
    seen_by = []
    for embedding in (stock, ours):
        pixels = torch.randn(5, 1176, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
        embedding(pixels).square().sum().backward()
        seen_by.append((pixels.grad, embedding.proj.weight.grad))
    torch.testing.assert_close(seen_by[1], seen_by[0], rtol=1e-10, atol=1e-10)


def test_under_autocast_it_is_stock_and_its_gradient_no_further_from_exact() -> None:
    stock, ours = (tower.patch_embed for tower in towers())
    exact = copy.deepcopy(stock)
    pixels = torch.randn(64, 1176, generator=torch.Generator().manual_seed(0))
    seen_by = []
    for embedding in (stock, ours, exact):
        with torch.autocast("cpu", torch.bfloat16, enabled=embedding is not exact):
            tokens = embedding(pixels)
        tokens.float().square().sum().backward()
        seen_by.append((tokens, embedding.proj.weight.grad))
    (stock_tokens, _), (our_tokens, our_gradient), _ = seen_by
    assert torch.equal(our_tokens, stock_tokens) and our_tokens.dtype == torch.bfloat16
    assert our_gradient.dtype == torch.float32
    of_stock, of_ours = ((gradient - seen_by[2][1]).square().mean().sqrt() for _, gradient in seen_by[:2])
    assert of_ours < 1.1 * of_stock


def test_windows_are_kept_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    """The negative control: windows of several lengths taken as they come would be other windows."""
    stock, ours = towers()
    tokens, _ = seen(stock, GRIDS["mixed"])
    assert torch.equal(seen(ours, GRIDS["mixed"], from_rules=True)[0], tokens)
    sorts = Segments.__init__

    def as_they_come(self: Segments, boundaries: Tensor) -> None:
        sorts(self, boundaries)
        self.order = None

    monkeypatch.setattr(Segments, "__init__", as_they_come)
    assert (seen(ours, GRIDS["mixed"], from_rules=True)[0] - tokens).abs().max() > 1e-3


@pytest.mark.parametrize("lengths", [[4, 4, 4], [3, 1, 3, 2, 1], [5], [2, 7, 2]], ids=str)
def test_segments_sort_runs_by_length_and_patches_stay_in_their_order(lengths: list[int]) -> None:
    segments = Segments(torch.tensor([0, *lengths]).cumsum(0))
    patches = iter(range(sum(lengths)))
    runs = [[next(patches) for _ in range(length)] for length in lengths]
    expected = sorted(runs, key=len)  # stable
    order = range(sum(lengths)) if segments.order is None else segments.order.tolist()
    assert list(order) == [patch for run in expected for patch in run]
    assert (segments.order is None) == (len(set(lengths)) == 1) and segments.longest == max(lengths)
    assert segments.shapes == [(lengths.count(length), length) for length in sorted(set(lengths))]


@pytest.mark.parametrize("from_rules", [False, True])
@pytest.mark.parametrize("grid", GRIDS.values(), ids=GRIDS)
def test_calls_are_by_length(grid: list[list[int]], from_rules: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    stock_sdpa = nn.functional.scaled_dot_product_attention

    def counted(*args: Tensor, **kwargs: object) -> Tensor:
        calls.append(len(args[0]))
        return stock_sdpa(*args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(nn.functional, "scaled_dot_product_attention", counted)
    stock, ours = towers()
    with torch.no_grad():
        seen_by = []
        for tower in (stock, ours):
            calls.clear()
            patches = torch.zeros(sum(math.prod(each) for each in grid), 1176)
            tower(patches, **inputs_of(tower, grid, from_rules and tower is ours))
            seen_by.append(list(calls))
    assert sum(seen_by[0]) == sum(seen_by[1]) == len(seen_by[0])  # every window, and stock makes a call for each
    assert len(seen_by[1]) <= 6 * len(ours.blocks)  # type: ignore[arg-type]


def test_windows_are_sorted_by_workers_and_not_in_the_tower() -> None:
    """On a GPU each look at a tensor's numbers waits for all that was started before."""
    tower = TinyQwen25VL(vision_layers=8).stock_model().model.visual
    install_fast_vision(tower)
    counts = []
    for from_rules in (True, False):
        inputs = inputs_of(tower, [[1, 20, 20]], from_rules)
        with torch.profiler.profile() as profile, torch.no_grad():
            assert len(tower(torch.randn(400, 1176), **inputs).pooler_output) == 100
        calls = {event.key: event.count for event in profile.key_averages()}
        counts.append([calls.get(name, 0) for name in ("aten::_unique2", "aten::item")])
    assert counts[0] == [0, 0] and counts[1][0] == 8  # the control: by boundaries, once per layer
