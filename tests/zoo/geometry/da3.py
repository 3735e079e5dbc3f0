"""Depth Anything 3 with weights that are pure functions of the official names, as in its golden cases."""

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
from tests.zoo.geometry.official import load_json
from zoo.cameras.poses import rigid_matrix
from zoo.geometry.da3 import DA3, DA3Output

HEADS = ("camera", "depth", "ray")
FOV_BIAS = 0.8  # the golden cases' one exception: with hash weights, a third of the fields of view would be 0


def manifest(name: str) -> dict[str, Any]:
    """Config and tensors, on the meta device, of a released model."""
    found = load_json(f"da3/manifests/{name}")
    shapes = found["tensors"].items()
    return found | {"tensors": {each: torch.empty(about["shape"], device="meta") for each, about in shapes}}


def hash_weights(names: dict[str, list[int]], dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """All tensors of a file by their names and shapes."""
    tensors = {name: init_(name, torch.empty(shape)) for name, shape in names.items()}
    for name, tensor in tensors.items():
        if name.endswith("cam_dec.fc_fov.0.bias"):
            tensor += FOV_BIAS
    return {name: tensor.to(dtype) for name, tensor in tensors.items()}


def hash_model(config: dict[str, Any], dtype: torch.dtype = torch.float32) -> DA3:
    """A model of any config."""
    return deepcopy(_built_model(json.dumps(config), None, dtype))


@lru_cache(maxsize=8)
def _built_model(config: str, names: str | None, dtype: torch.dtype) -> DA3:
    """A model that is built once, with weights of the names and shapes in JSON; None takes its own."""
    about = json.loads(config)
    if names is None:
        with torch.device("meta"):
            shapes = {name: list(tensor.shape) for name, tensor in DA3(about).official_state_dict().items()}
    else:
        shapes = json.loads(names)
    return DA3.from_official(about, hash_weights(shapes, dtype))


def case_model(meta: dict[str, Any], dtype: torch.dtype = torch.float32) -> DA3:
    """The model of golden cases, to be copied before it is changed; from its names, so that each must be in it."""
    return _built_model(json.dumps(meta["config"]), json.dumps(meta["param_names"]), dtype)


def run(model: DA3, meta: dict[str, Any], t: dict[str, Tensor], dtype: torch.dtype = torch.float32) -> DA3Output:
    """Everything that a model can compute of the images of a case."""
    cameras = {}
    if "given_world_to_camera" in t:
        cameras = {"world_to_camera": t["given_world_to_camera"].to(dtype), "K_px": t["given_K_px"].to(dtype)}
    options = {"reference": meta["strategy"]} if "strategy" in meta else {}
    heads = [head for head in HEADS if head in model.model.heads]
    with torch.no_grad():
        return model(t["images_u8"].to(dtype) / 255, range(model.model.trunk.depth), heads, **options, **cameras)


TOLERANCES = {  # absolute, relative: some ten times what float32 runs of the official code differ by
    "layer": (3e-5, 0.0),
    "pose_enc": (1e-5, 0.0),
    "world_to_camera": (3e-5, 0.0),
    "K_px": (0.0, 1e-4),
    "depth": (2e-5, 1e-5),
    "metric_depth": (5e-5, 1e-5),
    "depth_conf": (2e-5, 0.0),
    "rays": (5e-5, 0.0),
    "rays_conf": (2e-5, 1e-5),
    "sky": (2e-5, 0.0),
    "scale": (0.0, 5e-5),
}


def error(kind: str, found: Tensor, expected: Tensor) -> float:
    """The largest deviation in units of the tolerance."""
    absolute, relative = TOLERANCES[kind]
    return float(((found - expected).abs() / (absolute + relative * expected.abs()).clamp(min=1e-12)).max())


def errors(output: DA3Output, t: dict[str, Tensor], suffix: str = "", depth: str = "depth") -> dict[str, float]:
    """The error of each output that the case holds."""
    found = {}
    for layer, tokens in output.tokens.items():
        if f"layer_{layer}{suffix}" in t:
            found[f"layer_{layer}"] = error("layer", tokens, t[f"layer_{layer}{suffix}"])
    names = {"world_to_camera": "world_to_camera", "K_px": "intrinsics"}
    for kind in ("pose_enc", "world_to_camera", "K_px", "depth", "depth_conf", "rays", "rays_conf", "sky", "scale"):
        name, value = names.get(kind, kind) + suffix, getattr(output, kind)
        if name not in t or value is None:
            continue
        if kind == "world_to_camera":
            value = value[..., :3, :]
        found[kind] = error(depth if kind == "depth" else kind, value, t[name])
    return found


# ---- small configs ---------------------------------------------------------------------------------------------

WIDTH = 32


def any_view_config(**net: Any) -> dict[str, Any]:
    """Six small blocks with all heads."""
    trunk = {"name": "vits", "embed_dim": WIDTH, "depth": 6, "num_heads": 2, "out_layers": [2, 3, 4, 5]}
    trunk |= {"alt_start": 2, "qknorm_start": 2, "rope_start": 2, "cat_token": True}
    return {
        "net": trunk | net,
        "head": dense("DualDPT", 2 * WIDTH, 2),
        "cam_enc": {"dim_out": WIDTH, "num_heads": 4, "trunk_depth": 1},
        "cam_dec": {"dim_in": 2 * WIDTH},
    }


def metric_config() -> dict[str, Any]:
    trunk = {"name": "vitl", "embed_dim": WIDTH, "depth": 4, "num_heads": 2, "out_layers": [0, 1, 2, 3]}
    return {"net": trunk | {"cat_token": False}, "head": dense("DPT", WIDTH, 1)}


def nested_config() -> dict[str, Any]:
    return {"anyview": any_view_config(), "metric": metric_config()}


def dense(kind: str, width: int, outputs: int) -> dict[str, Any]:
    sizes = {"dim_in": width, "output_dim": outputs, "features": 16, "out_channels": [8, 8, 8, 8]}
    return {"__object__": {"name": kind}, **sizes}


def given_cameras(views: int, spread: float = 1.0) -> dict[str, Tensor]:
    centers = spread * torch.arange(3.0 * views).reshape(1, views, 3).sin()
    K = torch.tensor([[30.0, 0, 21], [0, 30, 14], [0, 0, 1]]).expand(1, views, 3, 3)
    return {"world_to_camera": rigid_matrix(torch.eye(3).expand(1, views, 3, 3), centers), "K_px": K}


def save(folder: Path, config: dict[str, Any], model: DA3 | None = None) -> str:
    """A folder as released ones are."""
    folder.mkdir(exist_ok=True)
    save_file((model or hash_model(config)).official_state_dict(), folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"model_name": "da3", "config": config}))
    return str(folder)
