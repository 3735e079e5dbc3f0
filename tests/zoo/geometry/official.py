"""The golden cases of geometry encoders, and VGGTs whose weights are pure functions of the official names."""

from __future__ import annotations

import json
import os
from copy import deepcopy
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.golden.weights import init_
from zoo.geometry import SceneGeometry, VGGTEncoder
from zoo.geometry.base import GeometryEncoder
from zoo.geometry.vggt import VGGT

HERE = Path(__file__).parents[2] / "golden"
GOLDEN = Path(os.environ.get("ZOO_GOLDEN", HERE))  # all golden cases if available; the small ones are in the repository
HEADS = ("camera", "depth", "point")


def cases(folder: str) -> list[str]:
    """The golden cases in a folder such as `da3/any_view`, all of them where they are available."""
    return sorted(f"{folder}/{path.stem}" for path in (GOLDEN / folder).glob("*.safetensors"))


def load_json(case: str) -> dict[str, Any]:
    """What is known of a golden case, from the repository if it is there."""
    path = next((file for root in (HERE, GOLDEN) if (file := root / f"{case}.json").exists()), None)
    if path is None:
        pytest.skip(f"{case} is not in the repository: set ZOO_GOLDEN to the folder of all golden cases")
    return json.loads(path.read_text())


def load_case(case: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """A golden case."""
    root = HERE if (HERE / f"{case}.json").exists() else GOLDEN
    return load_json(case), load_file(root / f"{case}.safetensors")


def hash_weights(config: dict[str, Any], dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    with torch.device("meta"):
        shapes = VGGT(**config).official_state_dict()
    return {name: init_(name, torch.empty(tensor.shape)).to(dtype) for name, tensor in shapes.items()}


def hash_model(config: dict[str, Any], dtype: torch.dtype = torch.float32) -> VGGT:
    """A model of any config, which is built once."""
    return deepcopy(_built_model(json.dumps(config), dtype))


@lru_cache(maxsize=4)
def _built_model(config: str, dtype: torch.dtype) -> VGGT:
    return VGGT.from_official(json.loads(config), hash_weights(json.loads(config), dtype))


def tiny_config(**aggregator: Any) -> dict[str, Any]:
    """A small conv VGGT of three layers with all heads."""
    width = 32
    dense = {"dim_in": 2 * width, "features": 16, "out_channels": [8, 8, 8, 8]}
    dense["intermediate_layer_idx"] = [0, 1, 1, 2]
    trunk = {"embed_dim": width, "depth": 3, "num_heads": 2, "patch_embed": "conv"}
    return {
        "aggregator": trunk | aggregator,
        "camera_head": {"dim_in": 2 * width, "trunk_depth": 1, "num_heads": 2},
        "depth_head": dense | {"output_dim": 2, "activation": "exp"},
        "point_head": dense | {"output_dim": 4, "activation": "inv_log"},
    }


def tiny_images(batch: int = 1, frames: int = 2, height: int = 28, width: int = 42, seed: int = 0) -> Tensor:
    return torch.rand(batch, frames, 3, height, width, generator=torch.Generator().manual_seed(seed))


def check_reachable(encoder: GeometryEncoder, frames: list[Tensor], scene: SceneGeometry, **wanted: bool) -> None:
    """Check that a parameter gets a gradient of the wanted outputs if and only if it is reachable."""
    (found,) = encoder(frames, [scene], **wanted)
    sum(value.sin().sum() for value in found.present().values() if value.requires_grad).backward()
    for name, parameter in encoder.named_parameters():
        assert (parameter.grad is None) == encoder.is_unreachable(name, **wanted), name


def save_vggt(encoder: VGGTEncoder, path: Path) -> None:
    save_file({name: tensor.contiguous() for name, tensor in encoder.vggt.official_state_dict().items()}, path)


def alter(path: Path, name: str) -> Path:
    """Changes one number of a tensor by one unit in the last place; size and time of the file stay."""
    tensors, status = load_file(path), path.stat()
    changed = tensors[name].clone()
    changed.view(-1)[0] = torch.nextafter(changed.view(-1)[0], torch.tensor(torch.inf))
    save_file(tensors | {name: changed}, path)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert path.stat().st_size == status.st_size
    return path
