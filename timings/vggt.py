"""VGGT's aggregator with random weights: forward time and peak memory of activations, with one layer kept.

In the same run it is compared with the same module keeping every layer, as the official code does, and with a plain
matrix product of the same FLOPs, dtype and threads; see `timings.trunks`.

python -m timings.vggt [--frames 1 4 16 32] [--sizes large] [--dtypes float32] [--device cpu] [--threads 2]

A row takes 3 x repeats + 2 forward passes of 0.9, 3.6, 18 and 46 TFLOP. On two cores, use --frames 1 4 --repeats 5,
then
--frames 16 32 --repeats 1.
"""

from __future__ import annotations

import argparse
from collections.abc import Collection, Mapping
from typing import Any

import torch

from timings.trunks import Comparison, Forward, block_flops, compare, fill, num_patches, parse
from zoo.geometry.vggt import DINOV2, VGGT

SIZES: dict[str, dict[str, Any]] = {
    "large": {"embed_dim": 1024, "depth": 24, "num_heads": 16, "patch_embed": "dinov2_vitl14_reg"},
    "small": {"embed_dim": 384, "depth": 12, "num_heads": 6, "patch_embed": "dinov2_vits14_reg"},
    "tiny": {"embed_dim": 64, "depth": 4, "num_heads": 4, "patch_embed": "conv"},
}


def main() -> None:
    parser = parse(__doc__, SIZES, frames=[1, 4, 16, 32], sizes=["large"])
    compare(
        Comparison(
            "timings.vggt", ("ours", "every layer"), build, aggregator_flops, lambda size: SIZES[size]["embed_dim"]
        ),
        parser.parse_args(),
    )


def build(arguments: argparse.Namespace, names: Collection[str]) -> Mapping[str, Forward]:
    with torch.device("meta"):
        model = VGGT({"img_size": 518, **SIZES[arguments.size]})
    fill(model, arguments)
    kept = {"ours": (-1,), "every layer": range(model.aggregator.depth)}
    return {name: lambda images, layers=kept[name]: model(images, layers=layers, heads=()) for name in names}


def aggregator_flops(arguments: argparse.Namespace, frames: int) -> float:
    size, patches = SIZES[arguments.size], num_patches(arguments)
    width, tokens = size["embed_dim"], 5 + patches
    every = frames * tokens
    flops = size["depth"] * (block_flops(width, every, tokens) + block_flops(width, every, every))
    flops += 2 * frames * patches * 3 * 14 * 14 * width
    if size["patch_embed"] in DINOV2:  # it has a class token and four registers of its own
        flops += DINOV2[size["patch_embed"]][1] * block_flops(width, every, tokens)
    return flops


if __name__ == "__main__":
    main()
