"""All four models at their real sizes: a forward pass on tensors without memory."""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import product
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from zoo import BaselineVLM, Cameras, ConcatSplitMLLM, PRoPE, PRoPEMLLM, SpatialMLLM
from zoo.backbones.pretrained import PretrainedQwenVL
from zoo.checkpoints import PretrainedQwen3VL, PretrainedQwen25VL, PretrainedQwen35
from zoo.geometry import PretrainedVGGT
from zoo.tasks import VideoQATask

SIZES = {
    "Qwen2.5-VL-3B": "qwen2_5_vl_3b_shapes",
    "Qwen2.5-VL-7B": "qwen2_5_vl_7b_shapes",
    "Qwen3-VL-4B": "qwen3_vl_4b",
    "Qwen3-VL-8B": "qwen3_vl_8b",
    "Qwen3.5-4B": "qwen3_5_4b",
}
MANIFESTS = Path(__file__).parents[1] / "golden/manifests"
GRID = torch.tensor([[2, 12, 16]])  # in patches: four frames


def qwen(size: str) -> PretrainedQwenVL:
    if size.startswith("Qwen3.5"):
        return PretrainedQwen35(f"Qwen/{size}")
    return (PretrainedQwen3VL if size.startswith("Qwen3") else PretrainedQwen25VL)(f"Qwen/{size}-Instruct")


def released_parameters(size: str) -> int:
    manifest = json.loads((MANIFESTS / f"{SIZES[size]}.json").read_text())
    shapes = manifest.get("tensors") or manifest["shapes"]
    return sum(torch.Size(shape).numel() for shape in shapes.values())


MODELS: dict[str, Callable[[PretrainedQwenVL], VideoQATask]] = {
    "BaselineVLM": lambda qwen: BaselineVLM(backbone=qwen),
    "SpatialMLLM": lambda qwen: SpatialMLLM(backbone=qwen, geometry=PretrainedVGGT),
    "ConcatSplitMLLM": lambda qwen: ConcatSplitMLLM(backbone=qwen, geometry=PretrainedVGGT),
    "PRoPEMLLM": lambda qwen: PRoPEMLLM(PRoPE(), backbone=qwen, geometry=PretrainedVGGT),
}


MODE = FakeTensorMode(allow_non_fake_inputs=True)  # token ids, frames and cameras stay real


def fake(tensor: Tensor) -> FakeTensor:
    """A tensor of the CPU without memory, from one of the meta device."""
    return FakeTensor(MODE, tensor.detach(), torch.device("cpu"))


def make_fake(module: nn.Module) -> None:
    """Turn the tensors of a module on the meta device into fake ones, in place."""
    for part in module.modules():
        for name, value in part.named_parameters(recurse=False):
            part._parameters[name] = nn.Parameter(fake(value), value.requires_grad) if value.is_meta else value
        part._buffers |= {name: fake(value) for name, value in part.named_buffers(recurse=False) if value.is_meta}


@pytest.mark.slow
@pytest.mark.parametrize(("name", "size"), list(product(MODELS, SIZES)))
def test_forward_at_the_size_of_the_released_weights(name: str, size: str) -> None:
    with torch.device("meta"):
        model = MODELS[name](qwen(size)).model
    count = sum(p.numel() for p in model.backbone.vlm.parameters())
    make_fake(model)
    config, patch = model.backbone.vlm.config, model.backbone.patch_size
    spans = int(GRID[0, 0]) if model.backbone.span_per_step else 1
    span = [7, config.vision_start_token_id, *[config.video_token_id] * int(GRID.prod() // 4 // spans)]
    tokens = [1, *span * spans, 5, 6]
    ids = torch.tensor([tokens])
    poses = torch.eye(4).repeat(1, 2, 1, 1)
    with torch.no_grad():
        logits = model.logits(
            ids,
            torch.ones_like(ids),
            pixel_values_videos=fake(torch.empty(int(GRID.prod()), 6 * patch**2, device="meta")),
            video_grid_thw=GRID,
            frames=[torch.zeros(4, 3, 12 * patch, 16 * patch)],
            cameras=Cameras(poses, torch.eye(3).repeat(1, 2, 1, 1)),
        )
    assert logits.shape == (1, len(tokens), config.text_config.vocab_size)
    assert count == released_parameters(size)
