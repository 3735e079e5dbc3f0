"""Compiled decoder layers: losses and gradients of the uncompiled ones, with every camera encoding."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
import torch
from torch._dynamo.utils import counters

from benchmarks.symmetries import COMBINATIONS
from tests.zoo.asking import QUESTIONS, batch, build, replies, scene
from tests.zoo.compiled import compiled_difference

NAMES = ("plain", "prope.yaml", "DeepFusion", *COMBINATIONS)
TOLERANCE = 1e-5  # relative, in float32


@pytest.fixture(autouse=True)
def limit() -> Iterator[None]:
    """Compiled models raise it."""
    before = torch._dynamo.config.recompile_limit
    yield
    torch._dynamo.config.recompile_limit = before


@pytest.mark.slow
def test_checkpointed_layers_are_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    assert compiled_difference("plain", packs=False, gradient_checkpointing=True) < TOLERANCE


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_losses_and_gradients_are_those_of_uncompiled_layers() -> None:
    words = [sys.executable, "-m", "tests.zoo.compiled", *NAMES]
    done = subprocess.run(words, cwd=Path(__file__).parents[2], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert len(found) == 2 * len(NAMES) and all(each < TOLERANCE for each in found.values()), found


@pytest.mark.slow
@pytest.mark.timeout(1800)  # a C++ compiler runs for each kernel
def test_with_the_kernels_of_a_cpu() -> None:
    assert compiled_difference("plain", packs=False) < TOLERANCE


def test_answers_run_uncompiled() -> None:
    counters.clear()
    plain, compiled = build("plain"), build("plain", compile_decoder=True)
    asked = batch(plain, scene("a", QUESTIONS[:2]))
    assert replies(compiled, asked) == replies(plain, asked)
    assert not counters["stats"]["unique_graphs"]
