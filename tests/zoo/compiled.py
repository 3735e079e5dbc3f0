"""Losses and gradients of compiled decoder layers beside those of the same layers uncompiled.

`python -m tests.zoo.compiled <model> ...` prints a JSON object of differences: in a process without the run-time checks
of shapes, which the compiler can't trace.
"""

from __future__ import annotations

import argparse
import json
from functools import partial
from typing import Any

import torch
from torch._dynamo.utils import counters

from tests.tiny import MASKED_FAMILIES, QUESTIONS, difference, learned, tiny_batch, tiny_model, tiny_scene


def compiled_difference(name: str, packs: bool, family: str, **more: Any) -> float:
    """The greatest relative difference, see `difference`; infinite if some layer was not compiled as a whole."""
    torch.compiler.reset()  # another model counts as another form of the same code
    counters.clear()
    shown = partial(tiny_scene, family=family)
    scenes = [shown("a", QUESTIONS[1:3]), shown("b", QUESTIONS[:1], steps=2, seed=1)]
    plain, compiled = (tiny_model(name, family=family, compile_decoder=each, **more).train() for each in (False, True))
    expected = learned(plain, plain.loss(tiny_batch(plain, *scenes, training=True, pack_scenes=packs)))
    found = learned(compiled, compiled.loss(tiny_batch(compiled, *scenes, training=True, pack_scenes=packs)))
    is_whole = not counters["graph_break"] and not counters["recompile_limit"]
    is_compiled = counters["stats"]["unique_graphs"] >= 1 and is_whole
    return difference(found, expected) if is_compiled else float("inf")


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("names", nargs="+")
    parser.add_argument("--backend", default="aot_eager", help="all but the kernels; inductor for these as well")
    parser.add_argument("--gradient_checkpointing", action="store_true")
    parser.add_argument("--family", default="Qwen2.5-VL")
    options = parser.parse_args()
    torch.compile = partial(torch.compile, backend=options.backend)
    more = {"family": options.family, "gradient_checkpointing": options.gradient_checkpointing}
    packings = (False, True) if options.family in MASKED_FAMILIES else (False,)
    cases = [(name, packs) for name in options.names for packs in packings]
    print(json.dumps({f"{name}, packed {packs}": compiled_difference(name, packs, **more) for name, packs in cases}))
