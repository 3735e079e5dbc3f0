"""Combinations of encodings in a training of a tiny random decoder: checkpointing, LoRA, and rounding."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from functools import cache

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from tests.zoo.combinations import FEWER_NAMES
from tests.zoo.decoder import MOVES, Example, gradients, install, logits, tiny_model

pytestmark = pytest.mark.parametrize("name", FEWER_NAMES)


def test_gradient_checkpointing_gives_equal_gradients(name: str) -> None:
    model = tiny_model().train()
    encoding = install(model, name)
    example, other = Example(encoding), Example(encoding, seed=1)
    plain = gradients(model, example)
    model.activation_checkpointing_enable({"use_reentrant": False})
    checkpointed = gradients(model, example, other)
    assert plain.keys() == checkpointed.keys() and len(plain) > 20
    assert {f"encoding.{each}" for each, _ in encoding.named_parameters()} <= plain.keys()
    for each, gradient in plain.items():
        torch.testing.assert_close(checkpointed[each], gradient, rtol=0, atol=1e-7)
    without = gradients(model, example.without_cameras())  # control: the gradients depend on the cameras
    name_of_v = "model.language_model.layers.0.self_attn.v_proj.weight"
    assert (without[name_of_v] - plain[name_of_v]).abs().max() > MOVES


def test_lora(name: str) -> None:
    model = tiny_model()
    example = Example(install(model, name))
    expected = logits(model, example).detach()
    adapted = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj", "k_proj", "v_proj", "o_proj"]))
    given = logits(adapted, example).detach()
    torch.testing.assert_close(given, expected)
    assert (given - logits(adapted, example, stock=True)).detach().abs().max() > MOVES
    found = gradients(adapted.train(), example)
    assert found and all("lora" in each or each.startswith("encoding.") for each in found)


def rounding_error(model: nn.Module, examples: Sequence[Example], stock: bool = False) -> float:
    """The root mean square of what bfloat16 changes."""
    rounded = deepcopy(model).bfloat16()
    errors = [logits(rounded, each, stock).float() - logits(model, each, stock) for each in examples]
    return float(torch.stack([error.square().mean() for error in errors]).mean().sqrt())


@cache
def stock_rounding_error() -> float:
    return rounding_error(tiny_model(), [Example(seed=seed) for seed in range(4)], stock=True)


@torch.no_grad()
def test_bfloat16_error_is_close_to_stock(name: str) -> None:
    """At unit scale, over four samples of cameras: at most 1.2 times the error of the stock decoder."""
    model = tiny_model()
    encoding = install(model, name)
    assert rounding_error(model, [Example(encoding, seed=seed) for seed in range(4)]) < 1.2 * stock_rounding_error()
