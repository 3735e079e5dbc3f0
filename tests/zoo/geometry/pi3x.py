"""Pi3X with weights that are pure functions of the official names, as in its golden cases."""

from __future__ import annotations

import json
from copy import deepcopy
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from tests.golden.weights import init_
from tests.poses import random_poses
from tests.zoo.geometry.official import load_json
from zoo.cameras.poses import invert_se3
from zoo.geometry import SceneGeometry
from zoo.geometry.layers import IMAGENET_MEAN, IMAGENET_STD
from zoo.geometry.pi3x import Pi3X, Pi3XOutput, tiny_config

CONFIG = tiny_config(embed_dim=32, depth=4, num_heads=2, features=16)


def hash_weights(names: dict[str, list[int]], dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """All tensors of a file by their names and shapes."""
    tensors = {name: init_(name, torch.empty(shape)) for name, shape in names.items()}
    buffers = {"image_mean": IMAGENET_MEAN, "image_std": IMAGENET_STD}
    tensors |= {name: torch.tensor(each, dtype=dtype).view(1, 3, 1, 1) for name, each in buffers.items()}
    return {name: tensor.to(dtype) for name, tensor in tensors.items()}


@lru_cache(maxsize=4)
def _built(config: str, names: str, added: str, dtype: torch.dtype) -> Pi3X:
    weights = hash_weights(json.loads(names), dtype)
    for name, values in json.loads(added).items():
        weights[name] = weights[name] + torch.tensor(values, dtype=dtype)
    return Pi3X.from_official(json.loads(config), weights).requires_grad_(False)


def case_model(meta: dict[str, Any], dtype: torch.dtype = torch.float32) -> Pi3X:
    """The model of golden cases, to be copied before it is changed; from its names, so that each must be in it."""
    about = load_json(f"pi3x/configs/{meta['config']}")
    added = json.dumps(meta.get("weights_add", {}))
    return _built(json.dumps(about["config"]), json.dumps(about["param_names"]), added, dtype)


@lru_cache(maxsize=4)
def _shapes(config: str) -> str:
    with torch.device("meta"):
        tensors = Pi3X(json.loads(config)).official_state_dict().items()
    return json.dumps({name: list(each.shape) for name, each in tensors if not name.startswith("image_")})


def hash_model(config: dict[str, Any] = CONFIG, dtype: torch.dtype = torch.float32) -> Pi3X:
    """A small model."""
    about = json.dumps(config)
    return deepcopy(_built(about, _shapes(about), "{}", dtype))


def given_of(t: dict[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    """The conditions of a golden case as arguments."""
    given: dict[str, Tensor] = {}
    if "camera_to_world" in t:
        given["world_to_camera"] = invert_se3(t["camera_to_world"]).to(dtype)
    if "depths_u8" in t:
        given["depth"] = t["depths_u8"].to(dtype) / 64
    given |= {name: t[name].to(dtype) for name in ("K_px", "rays") if name in t}
    masks = {"mask_pose": "has_pose", "mask_ray": "has_ray", "mask_depth": "has_depth"}
    return given | {ours: t[theirs] for theirs, ours in masks.items() if theirs in t}


def run(model: Pi3X, t: dict[str, Tensor], dtype: torch.dtype = torch.float32) -> Pi3XOutput:
    """Everything that a model can compute of a case."""
    return model(t["images_u8"].to(dtype) / 255, range(model.depth), ("camera", "point"), **given_of(t, dtype))


TOLERANCES = {  # absolute, relative, as the golden data suggests
    "features": (5e-5, 0.0),
    "local_points": (2e-5, 2e-5),
    "conf": (5e-5, 0.0),
    "predicted_camera_to_world": (5e-5, 5e-5),
    "metric": (0.0, 3e-5),
}


def errors(output: Pi3XOutput, t: dict[str, Tensor], suffix: str = "") -> dict[str, float]:
    """The largest deviation of each output in units of its tolerance."""
    last = max(output.tokens)
    width = output.tokens[last].shape[-1] // 2
    camera_to_world = invert_se3(output.world_to_camera)
    found = {"features": output.tokens[last], "local_points": output.local_points, "conf": output.conf}
    found |= {"predicted_camera_to_world": camera_to_world, "metric": output.scale}
    for pair, tokens in output.tokens.items():
        found |= {f"layer_{2 * pair}": tokens[..., :width], f"layer_{2 * pair + 1}": tokens[..., width:]}
    measured = {}
    for name, value in found.items():
        if (expected := t.get(name + suffix)) is not None:
            absolute, relative = TOLERANCES.get(name, TOLERANCES["features"])
            size = expected[..., 2:] if name == "local_points" else expected  # errors sideways go with depth
            measured[name] = float(((value - expected).abs() / (absolute + relative * size.abs())).max())
    return measured


def dataset_scene(frames: int, height: int, width: int, seed: int = 0, unit: float = 1.0) -> SceneGeometry:
    """Cameras and depth as a dataset has them."""
    poses = random_poses(frames, seed)
    poses[:, :3, 3] *= unit
    depth = unit * (1 + torch.rand(frames, height, width, generator=torch.Generator().manual_seed(seed)))
    depth[:, 0] = 0
    K = torch.tensor([[0.8, 0, 0.05], [0, 1.1, -0.1], [0, 0, 1]])
    return SceneGeometry(world_to_camera=poses, K_normalized=K.expand(frames, 3, 3), depth=depth)


def save(folder: Path, model: Pi3X) -> str:
    """A folder as the released one is."""
    folder.mkdir(exist_ok=True)
    save_file(
        {name: each.contiguous() for name, each in model.official_state_dict().items()}, folder / "model.safetensors"
    )
    return str(folder)
