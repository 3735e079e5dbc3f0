"""Advantages, log-probabilities and losses of GRPO equal TRL's, with controls for the rules that are easily missed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from zoo.objectives.grpo import LOSS_TYPES, group_advantages, grpo_loss, token_log_probs

GOLDEN = Path(__file__).parents[2] / "golden/grpo"


def case(name: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    return json.loads((GOLDEN / f"{name}.json").read_text()), load_file(GOLDEN / f"{name}.safetensors")


def loss_and_gradient(tensors: dict[str, Tensor], variant: dict[str, Any], **changed: Any) -> tuple[float, Tensor]:
    """Compute the loss and gradient of a variant by TRL's names of its settings."""
    settings, call = variant["settings"], variant["call"]
    accumulation = call.get("accumulation", 1) if call.get("training", True) else 1
    count = settings.get("num_items_in_batch")
    if count is not None:
        count = count * accumulation / settings["steps_per_generation"]
    mask = tensors["completion_mask"] * tensors.get("tool_mask", 1)
    logps = tensors["per_token_logps"].clone().requires_grad_()
    options: dict[str, Any] = {
        "ref_logps": tensors["ref_per_token_logps"],
        "loss_type": settings["loss_type"],
        "beta": settings["beta"],
        "epsilon_low": settings["epsilon"],
        "epsilon_high": settings["epsilon"] if settings["epsilon_high"] is None else settings["epsilon_high"],
        "level": settings["importance_sampling_level"],
        "correct_kl": settings["use_bias_correction_kl"],
        "max_length": settings["max_completion_length"],
        "num_tokens": count,
        "accumulation": accumulation,
        "delta": settings["delta"],
    }
    old = tensors["old_per_token_logps"] if call.get("old", True) else None
    loss = grpo_loss(logps, old, tensors["advantages"], mask, **(options | changed))
    loss.backward()
    assert logps.grad is not None
    return loss.item(), logps.grad


LOSSES = ["all_types", "far_from_old", "accumulation", "token_advantages_tool_mask"]


def is_asked(variant: dict[str, Any]) -> bool:
    """Return whether the zoo supports a variant; it has no mask by entropy or by distance from the old policy."""
    settings = variant["settings"]
    is_plain = settings["top_entropy_quantile"] == 1.0 and settings["off_policy_mask_threshold"] is None
    return is_plain and settings["loss_type"] in LOSS_TYPES


@pytest.mark.parametrize("name", LOSSES)
def test_losses_and_gradients_equal_trl(name: str) -> None:
    described, tensors = case(f"loss/{name}")
    asked = [variant for variant in described["variants"] if is_asked(variant)]
    assert {variant["settings"]["loss_type"] for variant in asked} == set(LOSS_TYPES)
    for variant in asked:
        loss, gradient = loss_and_gradient(tensors, variant)
        assert loss == pytest.approx(variant["loss_f64"], abs=1e-9), variant
        torch.testing.assert_close(gradient, tensors[f"grad_{variant['i']}"].to(gradient), atol=1e-9, rtol=1e-6)


def test_each_setting_matters() -> None:
    """The control: each setting with another value gives another gradient."""
    described, tensors = case("loss/far_from_old")
    changes: list[dict[str, Any]] = [
        {"correct_kl": False},
        {"level": "sequence"},
        {"beta": 0.0},
        {"epsilon_high": 0.5},
        {"delta": 1.05},
        {"accumulation": 2},
        *({"loss_type": kind} for kind in ("bnpo", "dr_grpo", "luspo")),
    ]
    variant = next(v for v in described["variants"] if v["settings"]["loss_type"] == "grpo" and v["settings"]["beta"])
    _, right = loss_and_gradient(tensors, variant)
    for change in changes:
        assert not torch.allclose(loss_and_gradient(tensors, variant, **change)[1], right, rtol=1e-3), change


def test_masked_tokens_have_no_gradient_whatever_they_hold() -> None:
    described, tensors = case("loss/all_types")
    masked = ~tensors["completion_mask"].bool()
    broken = dict(tensors)
    for number, key in enumerate(("per_token_logps", "old_per_token_logps", "ref_per_token_logps")):
        broken[key] = tensors[key].masked_fill(masked, (torch.nan, -torch.inf, torch.inf)[number])
    for variant in filter(is_asked, described["variants"]):
        expected, found = loss_and_gradient(tensors, variant), loss_and_gradient(broken, variant)
        assert found[0] == expected[0]
        assert torch.equal(found[1], expected[1]) and not found[1][masked].any()


@pytest.mark.parametrize("name", ["one_reward", "three_rewards"])
def test_advantages_equal_trl(name: str) -> None:
    described, tensors = case(f"advantages/{name}")
    weights = torch.tensor(described["reward_weights"], dtype=torch.float64)
    for variant in described["variants"]:
        rewards = tensors[variant["rewards"]]
        options = {"scale": variant["scale_rewards"], "aggregation": variant["aggregation"]}
        found = group_advantages(rewards, described["num_generations"], weights=weights, **options)
        torch.testing.assert_close(found, tensors[variant["key"]], atol=2e-7, rtol=2e-7, msg=str(variant))
        # a control: rows of one question are adjacent
        shuffled = group_advantages(rewards.roll(1, 0), described["num_generations"], weights=weights, **options)
        assert not torch.allclose(shuffled.roll(-1), found, atol=1e-3)


@pytest.mark.parametrize("name", ["temperature_1", "temperature_07"])
def test_log_probabilities_equal_trl(name: str) -> None:
    described, tensors = case(f"log_probs/{name}")
    known = tensors["completion_mask"].bool()
    found = token_log_probs(tensors["logits"], tensors["completion_ids"], temperature=described["temperature"])
    torch.testing.assert_close(found[known], tensors["log_probs"][known], atol=2e-6, rtol=0)
    assert found.dtype == torch.float32
    half = token_log_probs(tensors["logits"].bfloat16(), tensors["completion_ids"])
    assert half.dtype == torch.float32
    other = token_log_probs(tensors["logits"], tensors["completion_ids"], temperature=0.85)  # a control
    assert not torch.allclose(other[known], found[known], atol=1e-2)
