"""Losses and gradients of compiled decoder layers beside those of the same layers uncompiled.

`python -m tests.zoo.compiled <model> ...` prints a JSON object of differences: in a process without the run-time checks
of shapes, which the compiler can't trace.
"""

from __future__ import annotations

import json
import sys
from functools import partial
from typing import Any

import torch
from torch._dynamo.utils import counters

from tests.zoo.asking import QUESTIONS, build, scene
from tests.zoo.sequences.test_packed_training import batch, difference, learned


def compiled_difference(name: str, packs: bool, **more: Any) -> float:
    """The greatest relative difference, see `difference`; infinite if some layer was not compiled."""
    torch.compiler.reset()  # another model counts as another form of the same code
    counters.clear()
    scenes = [scene("a", QUESTIONS[1:3]), scene("b", QUESTIONS[:1], steps=2, seed=1)]
    plain, compiled = (build(name, compile_decoder=each, **more).train() for each in (False, True))
    expected = learned(plain, plain.loss(batch(plain, *scenes, pack_scenes=packs)))
    found = learned(compiled, compiled.loss(batch(compiled, *scenes, pack_scenes=packs)))
    is_compiled = counters["stats"]["unique_graphs"] >= 1 and not counters["recompile_limit"]
    return difference(found, expected) if is_compiled else float("inf")


if __name__ == "__main__":
    torch.compile = partial(torch.compile, backend="aot_eager")  # all but the kernels
    found = {f"{name}, packed {packs}": compiled_difference(name, packs) for name in sys.argv[1:] for packs in (0, 1)}
    print(json.dumps(found))
