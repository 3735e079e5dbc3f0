"""All four models at their real sizes: a forward pass on the meta device, where weights take no memory."""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import product
from pathlib import Path

import pytest
import torch

from benchmarks.meta import on_meta
from zoo import BaselineVLM, Cameras, ConcatSplitMLLM, PRoPE, PRoPEMLLM, SpatialMLLM
from zoo.checkpoints.config import ReleasedConfig, qwen3_config
from zoo.checkpoints.released import EmptyQwenVL
from zoo.geometry import VGGT, VGGTEncoder
from zoo.geometry.vggt.model import VGGT_1B
from zoo.tasks import VideoQATask

SIZES = ["qwen2_5_vl_3b", "qwen2_5_vl_7b", "qwen3_vl_4b", "qwen3_vl_8b"]
MANIFESTS = Path(__file__).parents[1] / "golden/manifests"
GRID = torch.tensor([[2, 12, 16]])  # in patches: four frames


def qwen(size: str) -> tuple[EmptyQwenVL, int]:
    """The backbone, and the number of its released parameters."""
    if size.startswith("qwen3"):
        manifest = json.loads((MANIFESTS / f"{size}.json").read_text())
        config, shapes = qwen3_config(manifest["config"]), manifest["tensors"]
    else:
        manifest = json.loads((MANIFESTS / f"{size}_shapes.json").read_text())
        config, shapes = ReleasedConfig({"qwen": manifest["config"]}).qwen, manifest["shapes"]
    return EmptyQwenVL(config, torch.bfloat16), sum(torch.Size(shape).numel() for shape in shapes.values())


def vggt() -> VGGTEncoder:
    return VGGTEncoder(VGGT(aggregator=VGGT_1B["aggregator"]))


MODELS: dict[str, Callable[[EmptyQwenVL], VideoQATask]] = {
    "BaselineVLM": lambda qwen: BaselineVLM(backbone=qwen),
    "SpatialMLLM": lambda qwen: SpatialMLLM(backbone=qwen, geometry=vggt),
    "ConcatSplitMLLM": lambda qwen: ConcatSplitMLLM(backbone=qwen, geometry=vggt),
    "PRoPEMLLM": lambda qwen: PRoPEMLLM(PRoPE(), backbone=qwen, geometry=vggt),
}


FAST = {*zip(MODELS, SIZES, strict=False)}  # each model once, and each size


@pytest.mark.parametrize(
    ("name", "size"),
    [pytest.param(*each, marks=() if each in FAST else pytest.mark.slow) for each in product(MODELS, SIZES)],
)
def test_forward_at_the_size_of_the_released_weights(name: str, size: str) -> None:
    with torch.device("meta"):
        empty, released = qwen(size)
        model = MODELS[name](empty).model
    config, patch = model.backbone.vlm.config, model.backbone.patch_size
    spans = int(GRID[0, 0]) if model.backbone.span_per_step else 1
    span = [7, config.vision_start_token_id, *[config.video_token_id] * int(GRID.prod() // 4 // spans)]
    tokens = [1, *span * spans, 5, 6]
    ids = torch.tensor([tokens])
    poses = torch.eye(4).repeat(1, 2, 1, 1)
    with on_meta():
        logits = model.logits(
            ids,
            torch.ones_like(ids),
            pixel_values_videos=torch.empty(int(GRID.prod()), 6 * patch**2, device="meta"),
            video_grid_thw=GRID,
            frames=[torch.empty(4, 3, 12 * patch, 16 * patch, device="meta")],
            cameras=Cameras(poses, torch.eye(3).repeat(1, 2, 1, 1)),
        )
    assert logits.is_meta and logits.shape == (1, len(tokens), config.text_config.vocab_size)
    assert sum(p.numel() for p in model.backbone.vlm.parameters()) == released
