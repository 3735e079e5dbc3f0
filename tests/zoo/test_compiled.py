"""Compiled decoder layers: losses and gradients of the uncompiled ones, with every camera encoding."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest
import torch
from torch._dynamo.utils import counters

from benchmarks.symmetries import COMBINATIONS
from tests.zoo.asking import QUESTIONS, build, replies, scene
from tests.zoo.asking import batch as batch_of
from tests.zoo.test_packed_training import batch, difference, learned

NAMES = ("plain", "prope.yaml", "DeepFusion", *COMBINATIONS)
TOLERANCE = 1e-5  # relative, in float32


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    limit = torch._dynamo.config.recompile_limit
    yield
    torch.compiler.reset()
    torch._dynamo.config.recompile_limit = limit


def test_checkpointed_layers_are_traced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    check("plain", packs=False, gradient_checkpointing=True)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_losses_and_gradients_are_those_of_uncompiled_layers(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Traced and differentiated as for a GPU, without the kernels."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
    check(name, packs=False)
    check(name, packs=True)


@pytest.mark.slow
@pytest.mark.timeout(1800)  # a C++ compiler runs for each kernel
def test_with_the_kernels_of_a_cpu() -> None:
    check("plain", packs=False)


def check(name: str, packs: bool, **more: Any) -> None:
    torch.compiler.reset()  # another model counts as another form of the same code
    counters.clear()
    scenes = [scene("a", QUESTIONS[1:3]), scene("b", QUESTIONS[:1], steps=2, seed=1)]
    plain, compiled = (build(name, compile_decoder=each, **more).train() for each in (False, True))
    expected = learned(plain, plain.loss({**batch(plain, *scenes), "pack_scenes": packs}))
    found = learned(compiled, compiled.loss({**batch(compiled, *scenes), "pack_scenes": packs}))
    assert difference(found, expected) < TOLERANCE
    assert counters["stats"]["unique_graphs"] >= 1 and not counters["recompile_limit"]


def test_answers_run_uncompiled() -> None:
    counters.clear()
    plain, compiled = build("plain"), build("plain", compile_decoder=True)
    asked = batch_of(plain, scene("a", QUESTIONS[:2]))
    assert replies(compiled, asked) == replies(plain, asked)
    assert not counters["stats"]["unique_graphs"]
