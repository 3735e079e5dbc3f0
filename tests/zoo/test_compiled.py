"""Compiled decoder layers: losses and gradients of the uncompiled ones."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch._dynamo.utils import counters

from tests.tiny import QUESTIONS, replies, tiny_batch, tiny_model, tiny_scene

HYBRID = "Compose(PRoPE UnrotatedChannels, DeltaNetLayers(PRoPE vo))"
TOLERANCE = 1e-5  # relative, in float32


@pytest.fixture(autouse=True)
def limit() -> Iterator[None]:
    """Compiled models raise it."""
    before = torch._dynamo.config.recompile_limit
    yield
    torch._dynamo.config.recompile_limit = before


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(
    "words",
    [
        ("PRoPE, ChannelRange", "RayRoPE"),
        ("plain", "--gradient_checkpointing"),
        ("plain", HYBRID, "--family", "Qwen3.5"),
    ],
    ids=["cameras", "checkpointed", "hybrid"],
)
def test_losses_and_gradients_of_whole_graphs_are_those_of_uncompiled_layers(words: tuple[str, ...]) -> None:
    command = [sys.executable, "-m", "tests.zoo.compiled", *words]
    done = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert len(found) >= 2 and all(each < TOLERANCE for each in found.values()), found


@pytest.mark.slow
def test_answers_run_uncompiled() -> None:
    counters.clear()
    plain, compiled = tiny_model("plain"), tiny_model("plain", compile_decoder=True)
    asked = tiny_batch(plain, tiny_scene("a", QUESTIONS[:2]))
    assert replies(compiled, asked) == replies(plain, asked)
    assert not counters["stats"]["unique_graphs"]
