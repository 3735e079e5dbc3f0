"""Pi3X's encoder and trunk with random weights: forward time and peak memory of activations, with one layer kept.

In the same run it is compared with the same module keeping every pair of blocks, and with a plain matrix product of the
same FLOPs, dtype and threads; see `timings.trunks`. No conditions are given.

python -m timings.pi3x [--frames 1 4 16] [--sizes large] [--dtypes float32] [--device cpu] [--threads 2]
"""

from __future__ import annotations

import argparse
from collections.abc import Collection, Mapping
from typing import Any

import torch

from timings.trunks import Comparison, Forward, block_flops, compare, fill, num_patches, parse
from zoo.geometry.pi3x import RELEASED, Conditions, Pi3X, tiny_config
from zoo.geometry.pi3x.model import PATCH_START

SIZES: dict[str, dict[str, Any]] = {
    "large": RELEASED,
    "tiny": tiny_config(embed_dim=64, depth=4, num_heads=4, features=16),
}


def main() -> None:
    parser = parse(__doc__, SIZES, frames=[1, 4, 16], sizes=["large"])
    comparison = Comparison(
        "timings.pi3x", ("ours", "every layer"), build, trunk_flops, lambda size: SIZES[size]["embed_dim"]
    )
    compare(comparison, parser.parse_args())


def build(arguments: argparse.Namespace, names: Collection[str]) -> Mapping[str, Forward]:
    with torch.device("meta"):
        model = Pi3X(SIZES[arguments.size], conditions=(), heads=())
    fill(model, arguments)
    with torch.no_grad():
        model.image_mean.fill_(0.45), model.image_std.fill_(0.22)
    kept = {"ours": (-1,), "every layer": range(model.depth)}
    return {name: lambda images, layers=kept[name]: model.compute(images, layers, (), Conditions()) for name in names}


def trunk_flops(arguments: argparse.Namespace, frames: int) -> float:
    size, patches = SIZES[arguments.size], num_patches(arguments)
    width, tokens = size["embed_dim"], PATCH_START + patches
    every = frames * tokens
    flops = size["decoder"]["depth"] / 2 * (block_flops(width, every, tokens) + block_flops(width, every, every))
    flops += size["encoder"]["depth"] * block_flops(width, every, tokens)  # a class token and four registers
    return flops + 2 * frames * patches * 3 * 14 * 14 * width


if __name__ == "__main__":
    main()
