"""Tokens are drawn by their probabilities, and by the seed and the question alone."""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest
import torch
from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from tests.zoo import asking
from tests.zoo.asking import QUESTIONS, batch, build
from zoo.errors import InputError
from zoo.generation import Sampling


def test_sampling() -> None:
    logits = torch.tensor([[2.0, 1.0, 0.0, -1.0]]).expand(4000, 4)
    torch.manual_seed(0)
    ways = Sampling(), Sampling(0.5), Sampling(2.0, 0.8), Sampling(top_k=2), Sampling(excluded=(0,))
    for sampling, draws in product(ways, (None, torch.rand(4000))):
        ids, log_probs = sampling(logits, draws)
        full = (logits[0] / sampling.temperature).log_softmax(-1)
        torch.testing.assert_close(log_probs, full[ids])
        expected = full.exp()
        if sampling.top_p < 1:
            expected[3] = 0  # 0.455, 0.276, 0.167, 0.101: the first three reach 0.8
        if sampling.top_k is not None:
            expected[2:] = 0
        if sampling.excluded:
            expected[0] = 0
        counts = torch.bincount(ids, minlength=4) / len(ids)
        torch.testing.assert_close(counts, expected / expected.sum(), atol=0.03, rtol=0)
        assert not counts[expected == 0].any()


def test_tokens_are_drawn_as_by_transformers() -> None:
    """By GeoVR's settings: the probabilities of `top_k` tokens are those among which `top_p` chooses."""
    generator = torch.Generator().manual_seed(0)
    logits, draws = torch.randn(2000, 60, generator=generator), torch.rand(2000, generator=generator)
    warped = logits
    for warp in (TemperatureLogitsWarper(0.7), TopKLogitsWarper(20), TopPLogitsWarper(0.8)):
        warped = warp(None, warped)
    bounds = warped.double().softmax(-1).cumsum(-1)
    expected = (bounds <= draws.double()[:, None]).sum(-1)
    ids, _ = Sampling(0.7, 0.8, 20)(logits, draws)
    assert (ids == expected).float().mean() > 0.999  # but for rounding at a bound
    other, _ = Sampling(0.7, 0.8)(logits, draws)
    assert (other != expected).any()  # the control
    with pytest.raises(InputError, match="top_p 1.5: above 0, up to 1"):
        Sampling(top_p=1.5)


def test_the_draws_of_a_question_depend_on_the_seed_and_on_itself_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever else is asked, in whatever order and number at once, as a resumed test or another process asks."""
    task = build("plain", sampling=Sampling(1.5, 0.95, 50))
    scene, few = asking.scene("a"), asking.scene("a", QUESTIONS[3:0:-2])

    def answers(*scenes: Any, at_once: int = 8) -> dict[str, str]:
        torch.manual_seed(len(scenes))  # another generator's state does not matter
        records = task.predict_batch(batch(task, *scenes, at_once=at_once))
        return {each["scene"] + each["id"]: each["prediction"] for each in records}

    found = answers(scene)
    assert answers(scene, at_once=1) == found == answers(scene, at_once=2)
    assert answers(few) == {name: found[name] for name in ("a3", "a1")}
    both = answers(asking.scene("b", steps=2, seed=1), scene)
    assert {name: both[name] for name in found} == found
    monkeypatch.setenv("PL_GLOBAL_SEED", "1")
    assert answers(scene) != found
    task.sampling = None
    assert answers(scene) != found  # the most likely tokens
