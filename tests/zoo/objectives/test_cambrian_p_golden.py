"""Cambrian-P's pose head and camera loss equal the official ones, with controls for each rule."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from tests.golden.weights import init_, unit_noise
from zoo.objectives.cambrian_p import PoseHead, camera_loss

GOLDEN = Path(__file__).parents[2] / "golden/cambrian_p"
DEFAULTS = {"trans": 1.0, "rot": 1.0, "focal": 0.5}
WEIGHTS = {
    "translation": (1.0, 0.0, 0.0),
    "rotation": (0.0, 1.0, 0.0),
    "focal": (0.0, 0.0, 0.5),
    "both": (0.0, 0.0, 0.0),
}


def case(name: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    return json.loads((GOLDEN / f"{name}.json").read_text()), load_file(GOLDEN / f"{name}.safetensors")


def loss_of(tensors: dict[str, Tensor], size: list[int], settings: dict[str, Any]) -> tuple[dict[str, Tensor], Tensor]:
    """The loss by the official names of its settings, and the gradient of its total."""
    predictions = tensors["predictions"].clone().requires_grad_()
    weights = tuple(
        settings.get(f"weight_{name}", 0.5 if name == "focal" else 1.0) for name in ("trans", "rot", "focal")
    )
    masks = tensors["point_masks"].flatten(2).sum(-1) > 100
    found = camera_loss(
        predictions,
        tensors["world_to_camera"],
        tensors["K_px"],
        size,
        kind=settings.get("loss_type", "l1"),
        weights=WEIGHTS.get(settings["components"], weights),
        valid=masks if settings["use_point_masks"] else None,
        align_scale=~tensors["is_metric"] if settings.get("use_scale_alignment") else None,
        rescale="prediction" if settings.get("rescale_pred_not_gt") else "target",
        balance=settings.get("use_trajectory_balance", False),
    )
    found["total"].backward()
    assert predictions.grad is not None
    return found, predictions.grad


@pytest.mark.parametrize("name", ["one_scene", "three_scenes"])
def test_losses_and_gradients(name: str) -> None:
    described, tensors = case(f"loss/{name}")
    for variant in described["variants"]:
        found, gradient = loss_of(tensors, described["image_hw"], variant["settings"])
        assert found["total"].item() == pytest.approx(variant["result"]["loss_camera"], rel=2e-6), variant
        torch.testing.assert_close(gradient.float(), tensors[f"grad_{variant['i']}"], atol=1e-6, rtol=1e-5)
        if variant["settings"]["components"] == "all":
            for key, official in (("translation", "loss_T"), ("rotation", "loss_R"), ("focal", "loss_FL")):
                assert found[key].item() == pytest.approx(variant["result"][official], rel=2e-6)


def test_any_world_and_four_rows_give_the_same_loss_but_not_another_first_view() -> None:
    described, tensors = case("loss/three_scenes")
    settings = described["variants"][8]["settings"]  # with the length of the path
    right, _ = loss_of(tensors, described["image_hw"], settings)
    poses = tensors["world_to_camera"].double()
    square = torch.cat((poses, torch.tensor([0.0, 0, 0, 1], dtype=torch.float64).expand(*poses.shape[:2], 1, 4)), 2)
    moved = square @ torch.linalg.inv(square[:1, 2:3])
    found, _ = loss_of({**tensors, "world_to_camera": moved}, described["image_hw"], settings)
    assert found["total"].item() == pytest.approx(right["total"].item(), rel=1e-5)
    swapped, _ = loss_of({**tensors, "world_to_camera": poses.flip(1)}, described["image_hw"], settings)
    assert abs(swapped["total"].item() / right["total"].item() - 1) > 0.05


def test_a_scene_without_valid_views_has_no_loss_and_no_gradient() -> None:
    described, tensors = case("loss/one_scene")
    none = {**tensors, "point_masks": torch.zeros_like(tensors["point_masks"])}
    found, gradient = loss_of(none, described["image_hw"], described["variants"][9]["settings"])
    assert found["total"].item() == 0.0 and not gradient.any()


@pytest.mark.parametrize("name", ["append_b2", "causal_one_block"])
def test_head_with_the_objective(name: str) -> None:
    described, tensors = case(f"heads/{name}")
    state = {official: init_(official, torch.empty(shape)) for official, shape in described["param_names"].items()}
    state["camera_head.empty_pose_tokens"][..., -2:] += 0.8
    state = {official: tensor.double() for official, tensor in state.items()}
    config = described["config"]
    options = {"trunk_depth": config["rec_camera_trunk_depth"], "causal": config["rec_camera_causal_attn"]}
    head = PoseHead.from_official(state, **options)
    batch, views = tensors["world_to_camera"].shape[:2]
    hidden = unit_noise(f"{name}.hidden", (batch, 11 + 7 * views, config["hidden_size"])).double()
    states = hidden[:, described["camera_token_index"]].requires_grad_()
    poses = head(states)
    torch.testing.assert_close(poses, tensors["poses"], atol=1e-8, rtol=0)
    found = camera_loss(poses, tensors["world_to_camera"], tensors["K_px"], described["image_hw"])
    objective = 5 * found["total"]
    assert objective.item() == pytest.approx(described["objective_f64"], rel=2e-6)
    objective.backward()
    assert states.grad is not None
    torch.testing.assert_close(states.grad.float(), tensors["grad_hidden"], atol=1e-6, rtol=1e-5)
    norms = {official: parameter.grad.norm().item() for official, parameter in head.named_official_parameters()}
    assert norms == pytest.approx(described["grad_l2_norms_f64"], rel=1e-5)
    # a control: views that come later matter, unless the trunk is causal
    other = PoseHead.from_official(state, **(options | {"causal": not options["causal"]}))
    assert not torch.allclose(other(states)[:, :, 0], poses[:, :, 0], atol=1e-3)
