"""The baseline against numbers from transformers 4.51, with which the released checkpoints were made."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.golden.weights import init_
from zoo.checkpoints import load_qwen25_vl

GOLDEN = Path(__file__).parents[1] / "golden/full_model"


def load(case: str):
    meta = json.loads((GOLDEN / f"{case}.json").read_text())
    return meta, load_file(GOLDEN / f"{case}.safetensors")


def build(meta: dict):
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    from zoo.checkpoints import current_name

    with torch.device("meta"):
        shapes = Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig(**meta["config"]["qwen"])).state_dict()
    official = {name: torch.empty(shapes[current_name(name)].shape) for name in meta["param_names"]}
    for name, tensor in official.items():
        init_(name, tensor)
    return load_qwen25_vl(meta["config"], official), official


def media(t: dict, meta: dict) -> dict:
    names = ("pixel_values_videos", "video_grid_thw", "pixel_values", "image_grid_thw")
    return {name: t[name] for name in names if name in t} | {"seconds_per_grid": meta["second_per_grid_ts"]}


@pytest.mark.parametrize("case", [path.stem for path in GOLDEN.glob("qwen_*.json")])
def test_logits_loss_gradients_and_answers(case: str) -> None:
    meta, t = load(case)
    model, official = build(meta)
    logits = model.logits(t["input_ids"], t["attention_mask"], **media(t, meta))
    real = t["attention_mask"].bool()
    assert torch.allclose(logits[real], t["out_logits"][real], atol=3e-5, rtol=0)

    targets = t["labels"][:, 1:]
    loss = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), targets.flatten(), ignore_index=-100)
    assert abs(loss.item() - meta["loss"]) < 1e-5
    loss.backward()
    gradients = {name: p.grad for name, p in model.qwen.named_parameters()}
    from zoo.checkpoints import current_name

    for name, norm in meta["grad_l2_norms_f32"].items():
        assert gradients[current_name(name)].norm().item() == pytest.approx(norm, rel=2e-3, abs=1e-5), name

    answers = model.generate_ids(t["input_ids"], t["attention_mask"], **media(t, meta), max_new_tokens=10)
    assert answers == t["out_generated"].tolist()


def test_another_time_is_another_answer() -> None:
    meta, t = load("qwen_one_video")
    model, _ = build(meta)
    wrong = media(t, meta) | {"seconds_per_grid": [0.5]}
    with torch.no_grad():
        logits = model.logits(t["input_ids"], t["attention_mask"], **wrong)
    assert not torch.allclose(logits, t["out_logits"], atol=1e-2)


def test_missing_and_unexpected_tensors_are_listed() -> None:
    meta, _ = load("qwen_one_video")
    _, official = build(meta)
    first = next(iter(official))
    official["model.surplus"] = official.pop(first)
    with pytest.raises(ValueError, match="model.surplus"):
        load_qwen25_vl(meta["config"], official)
