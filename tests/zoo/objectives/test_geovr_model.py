"""A whole GeoVR in training, by the zoo's own step: tokens, positions, losses and gradients are the official."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from tests.golden.weights import init_, unit_noise
from zoo import LearningRates, TeacherPose, TinyQwen3VL, VideoQATask
from zoo.checkpoints.geovr import our_name
from zoo.objectives.geovr import expand_tokens, position_ids, run_official

GOLDEN = Path(__file__).parents[2] / "golden/geovr/full"
NAMES = ("all_heads_b2", "camera_only", "distill_depth_no_tokens")
SEQUENCES = ("input_ids", "attention_mask", "mm_token_type_ids", "labels")
LAYERS = (4, 11, 17, 23)  # of VGGT


def case(name: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    return json.loads((GOLDEN / f"{name}.json").read_text()), load_file(GOLDEN / f"{name}.safetensors")


@pytest.mark.parametrize("name", NAMES)
def test_tokens_and_their_positions_are_the_official(name: str) -> None:
    described, tensors = case(name)
    switches = {"camera": described["config"]["add_camera"], "scale": described["config"]["add_scale"]}
    grids, given = tensors["video_grid_thw"], [tensors[key] for key in SEQUENCES]
    longer = expand_tokens(*given, grids, video_token_id=151, merge_size=2, **switches)
    expected = {key: tensors.get(f"expanded_{key}", tensors[key]) for key in SEQUENCES}
    assert all(torch.equal(found, wanted) for found, wanted in zip(longer, expected.values(), strict=True))
    ids, mask, types, _ = longer
    found = position_ids(ids, types, grids, attention_mask=mask, merge_size=2, **switches)
    assert torch.equal(found, tensors["position_ids"])
    if any(switches.values()):  # a control: the tokens are no 2D tokens
        with pytest.raises(ValueError, match="more placeholder tokens"):
            position_ids(ids, types, grids, attention_mask=mask, merge_size=2, camera=False, scale=False)
    with pytest.raises(ValueError, match="placeholders of videos"):
        expand_tokens(*given, grids + torch.tensor([1, 0, 0]), video_token_id=151, merge_size=2, **switches)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name == "camera_only" else pytest.mark.slow) for name in NAMES]
)
def test_a_training_step_is_the_official_one(name: str) -> None:
    described, tensors = case(name)
    config, norms = described["config"], described["grad_l2_norms_f64"]
    state = {key: init_(key, torch.empty(shape)) for key, shape in described["param_names"].items()}
    for key, shift in (("dpt_head.proj.bias", 0.5), ("camera_head.fc_fov.0.bias", 0.8)):
        if key in state:
            state[key] += shift
    grids = tensors["video_grid_thw"].tolist()
    rows, side = sum(t * h * w for t, h, w in grids), [pixels // 14 for pixels in described["teacher_image_hw"]]
    targets = []
    for b, (steps, *_) in enumerate(grids):
        features = {
            layer: unit_noise(f"{name}.{b}.teacher.layer_{layer}", (steps, *side, 1024)) if config["distill"] else None
            for layer in LAYERS
        }
        own = {key: tensors.get(f"{key}_{b}") for key in ("pose", "depth", "conf", "metric_depth", "sky")}
        targets.append({**own, "features": features if config["distill"] else {}})
    inputs = {key: tensors[key] for key in (*SEQUENCES, "video_grid_thw")}
    inputs["pixel_values_videos"] = unit_noise(f"{name}.pixel_values_videos", (rows, 1536))
    switches = {key: config[f"add_{key}"] for key in ("camera", "depth", "scale")}
    found = run_official(
        described["qwen"], state, inputs, targets, teacher="vggt", distill=config["distill"], **switches
    )
    expected = described["losses_f64"]
    official = {"lm": "loss", "total": "total", **{key: f"{key}_loss" for key in (*switches, "distill")}}
    for key, theirs in official.items():
        assert found[key] == pytest.approx(expected[theirs], rel=2e-5), key
    assert described["weights"]["camera"] == TeacherPose().weight
    assert found["gradient_norms"].keys() == state.keys()
    for key, norm in found["gradient_norms"].items():
        assert norm == pytest.approx(norms.get(key, 0.0), rel=1e-3, abs=1e-6), key


def test_learning_rates_are_the_official() -> None:
    groups = json.loads((GOLDEN.parent / "optimizer_groups.json").read_text())
    rates = LearningRates(decoder=2e-5, connector=2e-5, objective=1e-4, deepstack_merger="vision")  # of the recipe
    task = VideoQATask(backbone=TinyQwen3VL(layers=2, hidden_size=64, heads=2), learning_rates=rates)

    def rate(official: str) -> float | None:
        return getattr(rates, task.part_of(f"model.{our_name(official)}"))

    assert not any(rate(name) for name in groups["frozen"])
    for group in groups["groups"]:
        assert {rate(name) for name in group["names"]} == {group["lr"]}
    deepstack = [name for name in groups["frozen"] if "deepstack_merger" in name]
    rates.deepstack_merger = None  # a control
    assert deepstack and {rate(name) for name in deepstack} == {2e-5}
