"""All four models at their real sizes: a forward pass on the meta device, where weights take no memory."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

from zoo import Cameras, ConcatSplitMLLM, PRoPE, PRoPEMLLM, Qwen25VL, SpatialMLLM
from zoo.checkpoints.config import ReleasedConfig
from zoo.checkpoints.released import EmptyQwenVL
from zoo.geometry import VGGT, VGGTEncoder
from zoo.geometry.vggt.model import VGGT_1B
from zoo.tasks import VideoQATask

SIZES = ["3b", "7b"]
MANIFESTS = Path(__file__).parents[1] / "golden/manifests"
GRID = torch.tensor([[2, 12, 16]])  # four frames of 168 x 224


class ToMeta(TorchDispatchMode):
    """An operation of which one tensor is on the meta device takes place there: ids and grids stay real numbers.

    The one number that is asked for is whether the mask lets all tokens through, which it does.
    """

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        everything = (args, kwargs or {})
        if any(isinstance(leaf, torch.Tensor) and leaf.is_meta for leaf in tree_leaves(everything)):
            if func is torch.ops.aten._local_scalar_dense.default:
                return True
            args, kwargs = tree_map_only(torch.Tensor, lambda t: t.to("meta"), everything)
        return func(*args, **(kwargs or {}))


def manifest(size: str) -> dict[str, Any]:
    return json.loads((MANIFESTS / f"qwen2_5_vl_{size}_shapes.json").read_text())


def qwen(size: str) -> EmptyQwenVL:
    return EmptyQwenVL(ReleasedConfig({"qwen": manifest(size)["config"]}).qwen, torch.bfloat16)


def vggt() -> VGGTEncoder:
    return VGGTEncoder(VGGT(aggregator=VGGT_1B["aggregator"]))


MODELS: dict[str, Callable[[EmptyQwenVL], VideoQATask]] = {
    "Qwen25VL": lambda qwen: Qwen25VL(backbone=qwen),
    "SpatialMLLM": lambda qwen: SpatialMLLM(backbone=qwen, geometry=vggt),
    "ConcatSplitMLLM": lambda qwen: ConcatSplitMLLM(backbone=qwen, geometry=vggt),
    "PRoPEMLLM": lambda qwen: PRoPEMLLM(PRoPE(), backbone=qwen, geometry=vggt),
}


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", MODELS)
def test_forward_at_the_size_of_the_released_weights(name: str, size: str) -> None:
    with torch.device("meta"):
        model = MODELS[name](qwen(size)).model
    config = model.backbone.vlm.config
    tokens = [1, config.vision_start_token_id, *[config.video_token_id] * int(GRID.prod() // 4), 5, 6]
    ids = torch.tensor([tokens])
    poses = torch.eye(4).repeat(1, 2, 1, 1)
    with ToMeta():
        logits = model.logits(
            ids,
            torch.ones_like(ids),
            pixel_values_videos=torch.empty(int(GRID.prod()), 1176, device="meta"),
            video_grid_thw=GRID,
            frames=[torch.empty(4, 3, 168, 224, device="meta")],
            cameras=Cameras(poses, torch.eye(3).repeat(1, 2, 1, 1)),
        )
    assert logits.is_meta and logits.shape == (1, len(tokens), config.text_config.vocab_size)

    released = sum(torch.Size(shape).numel() for shape in manifest(size)["shapes"].values())
    assert sum(p.numel() for p in model.backbone.vlm.parameters()) == released
