"""The released sizes of VG-LLM and SpatialStack by their shapes alone: every official name has its place."""

from __future__ import annotations

import json

import pytest
import torch

from tests.zoo.released import GOLDEN
from zoo import SpatialVLM
from zoo.backbones import PretrainedSpatialStack, PretrainedVGLLM
from zoo.checkpoints import load_spatial_stack, load_vg_llm, official_tensors

SLOW = pytest.mark.slow


@pytest.mark.parametrize(
    "manifest, load, loader, path",
    [
        pytest.param("vg_llm_4b", load_vg_llm, PretrainedVGLLM, "zd11024/vgllm-qa-vggt-4b", marks=SLOW),
        pytest.param("vg_llm_8b", load_vg_llm, PretrainedVGLLM, "zd11024/vgllm-qa-vggt-8b", marks=SLOW),
        ("spatial_stack_qwen3_5_4b", load_spatial_stack, PretrainedSpatialStack, PretrainedSpatialStack.released),
    ],
)
def test_every_tensor_of_a_released_model_has_its_place(manifest, load, loader, path) -> None:  # type: ignore[no-untyped-def]
    known = json.loads((GOLDEN / f"manifests/{manifest}.json").read_text())
    with torch.device("meta"):
        shapes = {name: each if isinstance(each, list) else each["shape"] for name, each in known["tensors"].items()}
        tensors = {name: torch.empty(shape, dtype=torch.bfloat16) for name, shape in shapes.items()}
        model = load(known["config"], tensors)  # raises for anything missing, unexpected or misshapen
        assert {name: list(tensor.shape) for name, tensor in official_tensors(model).items()} == shapes
        by_its_name = SpatialVLM(**loader.released_parts(path))  # of a plan, without a download
        assert sum(p.numel() for p in by_its_name.parameters()) == known["num_parameters"]
