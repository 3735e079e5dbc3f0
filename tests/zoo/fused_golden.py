"""The golden cases of VG-LLM, SpatialStack and GeoThinker: tiny official models, weights a function of their names."""

from __future__ import annotations

import json
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from tests.golden.weights import init_
from tests.golden.weights_geothinker import init_geo_
from tests.golden.weights_qwen35 import init35_
from tests.zoo.released import GOLDEN, loss_of
from zoo import SpatialVLM
from zoo.checkpoints import load_geothinker, load_spa3_vlm, load_spatial_stack, load_vg_llm, official_parameters

MEAN_STD = {
    14: ([0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]),  # Qwen2.5-VL
    16: ([0.5] * 3, [0.5] * 3),  # Qwen3.5
}
LOADERS = {
    **dict.fromkeys(("vg_llm", "vg_llm_first_release", "vg_llm_geometry_off"), load_vg_llm),
    **dict.fromkeys(("geothinker_qwen2_5_vl", "geothinker_qwen3_vl"), load_geothinker),
    "spa3_vlm_qwen2_5_vl": load_spa3_vlm,
    **dict.fromkeys(("spatial_stack_qwen2_5_vl", "spatial_stack_qwen3_5"), load_spatial_stack),
}


def load_case(case: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The metadata and tensors of a case, such as `vg_llm/full_model/text_only`; tensors only where they are kept."""
    file = GOLDEN / f"{case}.safetensors"
    return json.loads((GOLDEN / f"{case}.json").read_text()), load_file(file) if file.is_file() else {}


def official_weights(meta: dict[str, Any]) -> dict[str, Tensor]:
    fill = init35_ if "text_config" in meta["config"]["qwen"] else init_
    if meta["model"].startswith("geothinker"):
        fill = init_geo_
    return {name: fill(name, torch.empty(shape)) for name, shape in meta["param_names"].items()}


def build(meta: dict[str, Any]) -> SpatialVLM:
    return LOADERS[meta["model"]](meta["config"], official_weights(meta))


def media(t: dict[str, Tensor], meta: dict[str, Any]) -> dict[str, Any]:
    """What a case shows, as `SpatialVLM.logits` takes it: each still once."""
    if "pixel_values_u8" not in t:
        return {}
    patches = t["pixel_values_u8"]
    mean, std = (torch.tensor(each, dtype=torch.float64)[:, None, None] for each in MEAN_STD[patches.shape[-1]])
    normalized = (patches.double() / 255 - mean) / std
    pixel_values = normalized[:, :, None].expand(-1, -1, 2, -1, -1).flatten(1).float()
    counts = meta.get("images_per_sample") or [sum(kind == "i" for kind, *_ in sample) for sample in meta["samples"]]
    if "geometry_images_u8" in t:
        stills = list(t["geometry_images_u8"])
    else:
        stills = [t[f"image_{number}_u8"] for number in range(sum(counts))]
    frames = [torch.stack([stills.pop(0) for _ in range(count)]) / 255 for count in counts if count]
    return {"pixel_values": pixel_values, "image_grid_thw": t["image_grid_thw"], "frames": frames}


def logits_of(model: SpatialVLM, t: dict[str, Tensor], given: dict[str, Any]) -> Tensor:
    with torch.no_grad():
        return model.logits(t["input_ids"], t["attention_mask"], **given)


def check_case(case: str, atol: float) -> SpatialVLM:
    """Compare logits, loss, gradients and greedy answers with a golden case; return the model."""
    meta, t = load_case(case)
    model = build(meta)
    logits = model.logits(t["input_ids"], t["attention_mask"], **media(t, meta))
    real = t["attention_mask"].bool()
    assert torch.allclose(logits[real], t["out_logits"][real], atol=atol, rtol=0)
    loss = loss_of(logits, t["labels"])
    assert abs(loss.item() - meta["loss"]) < atol
    loss.backward()
    parameters = official_parameters(model)
    for name, expected in meta.get("grad_l2_norms_f32", {}).items():
        if expected is None:  # some of these parameters are not kept
            assert name not in parameters or parameters[name].grad is None, name
            continue
        found = parameters[name].grad
        assert abs((0.0 if found is None else found.norm().item()) - expected) < 2e-3 * expected + 1e-5, name
    for name in (name.removeprefix("grad.") for name in t if name.startswith("grad.")):
        found, whole = parameters[name].grad, t[f"grad.{name}"]
        # the gradient of a number is a sum of terms that cancel: 2e-5 with AVX-512
        bound = (1e-5 if whole.ndim else 1e-4) * whole.abs().max()
        assert found is not None and (found.view(whole.shape) - whole).abs().max() < bound, name
    if meta.get("gen_min_top2_gap") is not None:
        answers = model.generate_ids(t["input_ids"], t["attention_mask"], **media(t, meta), max_new_tokens=8)
        assert answers == t["out_generated"].tolist()
    return model
