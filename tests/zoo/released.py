"""Tiny official models, weights a pure function of the official names, and the golden cases made with them."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional as F
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

from tests.golden.weights import init_
from zoo import SpatialVLM, TinyVGGT
from zoo.backbones.pretrained import PretrainedQwen25VL
from zoo.backbones.qwen25_vl import tiny_processor
from zoo.checkpoints import PretrainedSpatialMLLM, load_qwen25_vl, load_spatial_mllm
from zoo.checkpoints.export import names_of
from zoo.fusions import AddFusion, Fusion
from zoo.fusions.base import Connector
from zoo.geometry.vggt import VGGT, CameraHead
from zoo.sequences.layout import PATCHES_PER_TOKEN

# all golden cases where they are at hand; the small ones are here
GOLDEN = Path(os.environ.get("ZOO_GOLDEN", Path(__file__).parents[1] / "golden"))
CASES = sorted(path.stem for path in (GOLDEN / "full_model").glob("*.safetensors"))
SIZES = dict(layers=1, hidden_size=64, heads=2, key_value_heads=1, vision_hidden_size=32)  # of a small TinyQwen25VL
LOADERS = {"spatial_mllm": load_spatial_mllm, "qwen2_5_vl": load_qwen25_vl}


def load_case(case: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    folder = GOLDEN / "full_model"
    return json.loads((folder / f"{case}.json").read_text()), load_file(folder / f"{case}.safetensors")


def official_shapes(config: dict[str, Any], spatial: bool) -> dict[str, list[int]]:
    """Official name to shape, without a tied lm_head."""
    return _official_shapes(json.dumps(config), spatial)


@cache
def _official_shapes(about: str, spatial: bool) -> dict[str, list[int]]:
    config = json.loads(about)
    with torch.device("meta"):
        qwen = Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig(**config["qwen"]))
        shapes = {
            PretrainedQwen25VL.backbone_names().official(name): list(p.shape) for name, p in qwen.named_parameters()
        }
        if spatial:
            vggt = VGGT(config["spatial_config"] | config["vggt_aggregator"])
            width = 2 * vggt.aggregator.embed_dim
            connector = Connector(PATCHES_PER_TOKEN * width, PATCHES_PER_TOKEN * width, config["qwen"]["hidden_size"])
            named = vggt.official_state_dict().items()
            shapes |= {f"spatial_encoder.vggt_model.{name}": list(tensor.shape) for name, tensor in named}
            shapes |= {f"connector.{name}": list(p.shape) for name, p in connector.named_parameters()}
    return shapes


def official_weights(config: dict[str, Any], spatial: bool) -> dict[str, Tensor]:
    return {name: init_(name, torch.empty(shape)) for name, shape in official_shapes(config, spatial).items()}


def build(meta: dict[str, Any]) -> tuple[SpatialVLM, dict[str, Tensor]]:
    official = official_weights(meta["config"], meta["model"] == "spatial_mllm")
    return LOADERS[meta["model"]](meta["config"], official), official


def media(t: dict[str, Tensor], meta: dict[str, Any]) -> dict[str, Any]:
    """What a golden case shows, as `SpatialVLM.logits` takes it."""
    names = ("pixel_values_videos", "video_grid_thw", "pixel_values", "image_grid_thw")
    given: dict[str, Any] = {name: t[name] for name in names if name in t}
    given["seconds_per_grid"] = meta["second_per_grid_ts"]
    given["frames"] = frames(t, meta) or None
    return given


def frames(t: dict[str, Tensor], meta: dict[str, Any]) -> list[Tensor]:
    """The videos, and the stills of each sample as one scene of each still twice, in order of appearance."""
    found, videos, images = [], 0, 0
    for sample in meta["samples"]:
        for kind, *what in sample:
            if kind == "v":
                found.append(t[f"video_{videos}_u8"] / 255)
                videos += 1
            elif kind == "i":
                stills = [t[f"image_{images + i}_u8"] / 255 for i in range(len(what[0]))]
                images += len(stills)
                found.append(torch.stack([still for still in stills for _ in range(2)]))
    return found


def loss_of(logits: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=-100)


def gradient_norms(model: SpatialVLM) -> dict[str, float]:
    """By our names."""
    return {name: 0.0 if p.grad is None else p.grad.norm().item() for name, p in model.named_parameters()}


def check_case(case: str) -> None:
    """Logits, loss, gradients and greedy answers of a golden case."""
    meta, t = load_case(case)
    model, _ = build(meta)
    logits = model.logits(t["input_ids"], t["attention_mask"], **media(t, meta))
    real = t["attention_mask"].bool()
    assert torch.allclose(logits[real], t["out_logits"][real], atol=3e-5, rtol=0)
    loss = loss_of(logits, t["labels"])
    assert abs(loss.item() - meta["loss"]) < 1e-5
    loss.backward()
    norms, names = gradient_norms(model), names_of(model)
    for name, expected in meta["grad_l2_norms_f32"].items():
        (ours,) = names.current(name)
        assert abs(norms[ours] - expected) < 2e-3 * expected + 1e-5, name
    assert all(norms[names.current(name)[0]] == 0 for name in meta["params_without_grad"])
    if meta["gen_ids"] is not None:
        answers = model.generate_ids(t["input_ids"], t["attention_mask"], **media(t, meta), max_new_tokens=10)
        assert answers == t["out_generated"].tolist()


# ---- released folders -------------------------------------------------------------------------------------


def tiny_release() -> tuple[dict[str, Any], dict[str, Tensor]]:
    """config.json and all tensors of a tiny Spatial-MLLM as it is released: bfloat16, with VGGT's heads and tracker.

    Its VGGT has a DINOv2 named `tiny`, see `TINY_DINO`.
    """
    qwen = load_case("one_video")[0]["config"]["qwen"]
    aggregator = {"embed_dim": 32, "img_size": 56, "depth": 2, "num_heads": 2, "patch_embed": "tiny"}
    spatial = {"img_size": 56, "patch_size": 14, "embed_dim": 32}
    connector = {"connector_type": "mlp_add", "spatial_embeds_layer_idx": -2}
    config = {"qwen": qwen, "spatial_config": spatial, "connector_config": connector, "vggt_aggregator": aggregator}
    official = official_weights(config, True)
    with torch.device("meta"):
        head = CameraHead(64)
    others = {f"camera_head.{name}": tensor.shape for name, tensor in head.state_dict().items()}
    others["track_head.anything"] = torch.Size((3, 5))
    for name, shape in others.items():
        name = f"spatial_encoder.vggt_model.{name}"
        official[name] = init_(name, torch.empty(shape))
    del config["qwen"], aggregator["embed_dim"], aggregator["img_size"]
    config |= qwen | {"model_type": "spatial-mllm", "architectures": ["SpatialMLLMForConditionalGeneration"]}
    return config | {"torch_dtype": "bfloat16"}, {name: tensor.bfloat16() for name, tensor in official.items()}


TINY_DINO = (32, 2, 2)


def write_release(
    folder: Path, config: dict[str, Any], tensors: dict[str, Tensor], shards: int = 3, processor: Any = None
) -> None:
    """A folder as released: config, shards with an index, processor files."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    (processor or tiny_processor()).save_pretrained(folder)
    (folder / "generation_config.json").write_text('{"repetition_penalty": 1.05}')
    weight_map = {}
    for i in range(shards):
        file = f"model-{i + 1:05d}-of-{shards:05d}.safetensors"
        part = dict(list(tensors.items())[i::shards])
        save_file(part, folder / file)
        weight_map |= dict.fromkeys(part, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


def read_release(folder: Path) -> dict[str, Tensor]:
    return {name: tensor for path in folder.glob("*.safetensors") for name, tensor in load_file(path).items()}


def released_model(folder: Path, **options: Any) -> SpatialVLM:
    # the backbone's own VGGT comes before the one that is named
    return spatial_mllm(backbone=PretrainedSpatialMLLM(str(folder), **options), geometry=TinyVGGT)


def spatial_mllm(fusion: Callable[[int, int], Fusion] = AddFusion, **parts: Any) -> SpatialVLM:
    """The parts of a Spatial-MLLM."""
    return SpatialVLM(fusion=fusion, **parts)
