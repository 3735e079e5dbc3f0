"""Compare Depth Anything 3's trunk with the official one, with the same random weights and equal outputs.

The tables list forward time and peak memory of activations for the four layers that the heads read, and the time of a
plain matrix product of the same FLOPs; see `timings.trunks`. Install the official package and einops, without their
dependencies:

pip install --no-deps --target official depth-anything-3 einops
PYTHONPATH=official python -m timings.da3 [--frames 8 16] [--sizes small base] [--dtypes float32] [--threads 2]
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Collection, Mapping
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from timings.trunks import Comparison, Forward, block_flops, compare, fill, num_patches, parse
from zoo.geometry.da3.trunk import PATCH_SIZE, Trunk
from zoo.geometry.layers import normalize

STARTS = ("alt_start", "qknorm_start", "rope_start")
SIZES: dict[str, dict[str, Any]] = {
    "small": {"embed_dim": 384, "depth": 12, "num_heads": 6},
    "base": {"embed_dim": 768, "depth": 12, "num_heads": 12},
    "tiny": {"embed_dim": 64, "depth": 12, "num_heads": 2},
}
WIDTH = "embed_dim"
OUT_LAYERS, START = (5, 7, 9, 11), 4  # as in both released sizes
REFERENCE = "middle"  # the official choice depends on the trunk's dtype, and is another view in bfloat16
TOLERANCE = {"float32": 1e-5, "bfloat16": 3e-2}  # relative to the outputs' RMS


def main() -> None:
    arguments = parse(__doc__, SIZES, frames=[8, 16], sizes=["small", "base"]).parse_args()
    comparison = Comparison("timings.da3", ("ours", "official"), build, trunk_flops, lambda size: SIZES[size][WIDTH])
    compare(comparison, arguments)


def build(arguments: argparse.Namespace, names: Collection[str]) -> Mapping[str, Forward]:
    size = {**SIZES[arguments.size], **dict.fromkeys(STARTS, START)}
    with torch.device("meta"):
        trunk = fill(Trunk("vits", OUT_LAYERS, **size), arguments)
    ways: dict[str, Forward] = {"ours": lambda images: ours(trunk, images)}
    if "official" in names:
        module = fill(official_class()(img_size=518, patch_size=PATCH_SIZE, **size), arguments)
        module.load_state_dict(trunk.state_dict())
        ways["official"] = lambda images: official(module, images)
        check_equal(arguments, ways)
    return {name: ways[name] for name in names}


def ours(trunk: Trunk, images: Tensor) -> list[Tensor]:
    """Return the tokens of the four layers."""
    outputs, _ = trunk(normalize(images).to(trunk.dtype), OUT_LAYERS, REFERENCE)
    return [outputs[layer] for layer in OUT_LAYERS]


def official(module: nn.Module, images: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Return the patches and the camera tokens of the four layers."""
    images = normalize(images).to(module.cls_token.dtype)
    return module.get_intermediate_layers(images, OUT_LAYERS, ref_view_strategy=REFERENCE)[0]


def official_class() -> Any:
    """Return the official trunk. Only this part of its package is loaded, because the package imports a lot."""
    found = find_spec("depth_anything_3")
    if found is None or not found.submodule_search_locations:
        sys.exit("the official package is not on PYTHONPATH: see python -m timings.da3 --help")
    os.environ["DA3_LOG_LEVEL"] = "ERROR"
    package = ModuleType("depth_anything_3.model")  # replaces its __init__.py
    package.__path__ = [str(Path(folder) / "model") for folder in found.submodule_search_locations]
    sys.modules.setdefault(package.__name__, package)
    return importlib.import_module("depth_anything_3.model.dinov2.vision_transformer").DinoVisionTransformer


def check_equal(arguments: argparse.Namespace, ways: Mapping[str, Forward]) -> None:
    """Exit if the two trunks have different outputs."""
    images = torch.rand(1, 4, 3, 56, 84, device=arguments.device)
    with torch.inference_mode():
        one: Any = torch.stack(ways["ours"](images)).float()
        other: Any = torch.stack(
            [torch.cat((token[:, :, None], x), 2) for x, token in ways["official"](images)]
        ).float()
    error = float((one - other).square().mean().sqrt() / other.square().mean().sqrt())
    print(f"{arguments.size}, {arguments.dtype}: RMS difference of the outputs {error:.1e} of their RMS")
    if not error < TOLERANCE[arguments.dtype]:
        sys.exit("ours and the official trunk differ: their times can't be compared")


def trunk_flops(arguments: argparse.Namespace, frames: int) -> float:
    width, depth = SIZES[arguments.size][WIDTH], SIZES[arguments.size]["depth"]
    patches = num_patches(arguments)
    tokens, every = 1 + patches, frames * (1 + patches)
    num_global = len(range(START + 1 - START % 2, depth, 2))
    flops = (depth - num_global) * block_flops(width, every, tokens) + num_global * block_flops(width, every, every)
    return flops + 2 * frames * patches * 3 * PATCH_SIZE**2 * width


if __name__ == "__main__":
    main()
