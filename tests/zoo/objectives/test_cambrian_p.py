"""Cambrian-P's pose head and camera loss equal the official ones; the objective by this head."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from tests.golden.weights import init_, unit_noise
from tests.tiny import QUESTIONS, RATES, tiny_batch, tiny_scene
from zoo import InputError, PosePrediction, TeacherPose, TinyQwen25VL, VideoQATask
from zoo.cameras import invert_se3
from zoo.geometry import cameras_to_pose_encoding
from zoo.objectives import Decoded
from zoo.objectives.cambrian_p import PoseHead, camera_loss, mean_path

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
    """Compute the loss by the official names of its settings, and the gradient of its total."""
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


# ---- the objective ---------------------------------------------------------------------------------------------------


def task(**options: Any) -> VideoQATask:
    torch.manual_seed(0)
    backbone = TinyQwen25VL(layers=2, hidden_size=64, heads=2, key_value_heads=2, vision_hidden_size=32)
    objective = PosePrediction(dim=32, trunk_depth=1, **options)
    return VideoQATask(backbone=backbone, learning_rates=RATES, objectives=[objective])


def decoded(made: VideoQATask, *shown: Any) -> Decoded:
    asked = tiny_batch(made, *shown, training=True)
    assert asked.sequences is not None
    return made.model.hidden_states(made.model.encode_scenes(asked), asked.sequences)


def test_its_loss_is_cambrian_ps_on_the_cameras_of_the_views() -> None:
    made = task()
    shown = tiny_scene("a", QUESTIONS[:2])
    read = decoded(made.train(), shown)
    objective: Any = made.model.objectives["PosePrediction"]
    terms = objective(read)
    states = read.last_hidden_state[0, read.sequences.visual_places].unflatten(0, (3, -1))[:, -1]
    geometry = shown.geometry
    assert geometry is not None and geometry.world_to_camera is not None and geometry.K_normalized is not None
    size = (200, 100)
    K_px = geometry.K_normalized[::2].clone()
    K_px[:, 0] *= size[1]
    K_px[:, 1] *= size[0]
    expected = camera_loss(objective.head(states[None]), geometry.world_to_camera[None, ::2], K_px[None], size)
    total = sum(terms.values())
    torch.testing.assert_close(total, expected["total"])
    # all parts learn, and the first view by a token of its own
    total.backward()
    assert all(p.grad is not None and p.grad.any() for p in objective.parameters())
    assert objective.token.shape == (2, 64) and not torch.equal(*objective.token.grad)
    assert {"rotation_deg", "center", "unlearned/center"} <= objective.errors(read).keys()


def test_balanced_translations_are_divided_by_the_mean_path_of_the_batch() -> None:
    """Dividing each scene by its own path would give scenes of all lengths the same weight."""
    short, long = tiny_scene("a", QUESTIONS[:1]), tiny_scene("b", QUESTIONS[:1])
    assert long.geometry is not None
    long = replace(long, geometry=long.geometry.scaled(9.0))
    poses = torch.stack([each.geometry.world_to_camera[::2] for each in (short, long)])  # type: ignore[union-attr]
    terms = {}
    for balance in (False, True):
        made = task(balance=balance)
        objective: Any = made.model.objectives["PosePrediction"]
        terms[balance] = {name: value.item() for name, value in objective(decoded(made, short, long)).items()}
    assert terms[True]["translation"] == pytest.approx(terms[False]["translation"] / mean_path(poses).item())
    assert mean_path(poses) > 2 * mean_path(poses[:1])
    assert terms[True]["rotation"] == terms[False]["rotation"]


@pytest.mark.parametrize(
    ("unknown", "path"), [(slice(2, 4), [0, 0, 2]), (slice(0, 2), [1, 1, 2]), (slice(4, 6), [0, 1, 1])]
)
def test_views_without_a_camera_add_nothing_to_the_path(unknown: slice, path: list[int]) -> None:
    shown = tiny_scene("a", QUESTIONS[:1])
    assert shown.geometry is not None and shown.geometry.world_to_camera is not None
    poses = shown.geometry.world_to_camera[::2].clone()
    shown.geometry.world_to_camera = poses.repeat_interleave(2, 0)
    shown.geometry.world_to_camera[unknown] = torch.nan
    shown.geometry.has_camera = torch.ones(6, dtype=torch.bool)
    shown.geometry.has_camera[unknown] = False
    terms = []
    for balance in (False, True):
        made = task(balance=balance)
        objective: Any = made.model.objectives["PosePrediction"]
        terms.append(objective(decoded(made, shown))["translation"].item())
    assert terms[1] == pytest.approx(terms[0] / mean_path(poses[None, path]).item())


@pytest.mark.parametrize("kind", [partial(PosePrediction, dim=32, trunk_depth=1), TeacherPose])
def test_fields_of_view_start_where_they_learn(kind: Any) -> None:
    """Camera tokens hardly differ at first, so all outputs must start where ReLU has a gradient."""
    for seed in range(6):
        torch.manual_seed(seed)
        objective = kind()
        objective.bind(64, 2)
        last = objective.head.fc_fov[0] if kind is TeacherPose else objective.head.camera_head.pose_branch.fc2
        found = objective.head(torch.randn(64) + 0.01 * torch.randn(1, 8, 64))[..., 7:]
        assert (found > 0).all()
        found.sum().backward()
        assert last.weight.grad[-2:].any(1).all()


def test_views_without_a_camera_and_the_scale_of_a_scene() -> None:
    shown = tiny_scene("a", QUESTIONS[:1])
    assert shown.geometry is not None and shown.geometry.world_to_camera is not None
    made = task()
    objective: Any = made.model.objectives["PosePrediction"]
    whole = {name: value.item() for name, value in objective(decoded(made, shown)).items()}
    shown.geometry.has_camera = torch.tensor([True, True, True, True, False, False])
    shown.geometry.world_to_camera[4:] = torch.eye(4)
    part = {name: value.item() for name, value in objective(decoded(made, shown)).items()}
    assert part["rotation"] != whole["rotation"] and all(value > 0 for value in part.values())
    shown.geometry.has_camera[:] = False
    assert not any(objective(decoded(made, shown)).values())
    # up to its scale, a scene in another unit is the same
    found = {}
    for align in (False, True):
        made = task(align_scale=align, rescale="prediction")
        objective = made.model.objectives["PosePrediction"]
        with torch.no_grad():
            objective.head.camera_head.pose_branch.fc2.bias[:3] = 0.3
        again = tiny_scene("a", QUESTIONS[:1])
        for unit in (1.0, 2.0):
            assert again.geometry is not None
            again = replace(again, geometry=again.geometry.scaled(unit))
            found[align, unit] = objective(decoded(made, again))["translation"].item()
    assert found[False, 2.0] != pytest.approx(found[False, 1.0], rel=0.01)
    assert found[True, 2.0] == pytest.approx(2 * found[True, 1.0], rel=0.05)  # the prediction has its unit
    # so are the errors
    for align in (False, True):
        made = task(align_scale=align)
        objective = made.model.objectives["PosePrediction"]
        read = decoded(made, tiny_scene("a", QUESTIONS[:1]))
        poses = read.scenes[0].target_cameras.world_to_camera.float()
        exact = cameras_to_pose_encoding(poses @ invert_se3(poses[:1]), torch.eye(3).expand(len(poses), 3, 3), (1, 1))
        exact[:, :3] /= 2
        objective.head.forward = lambda states, exact=exact: exact.expand(4, 1, -1, -1)
        errors = objective.errors(read)
        still = invert_se3(poses @ invert_se3(poses[:1]))[1:, :3, 3].norm(dim=-1).mean()  # of all views but the first
        assert errors["rotation_deg"] < 0.1 and float(errors["unlearned/center"]) == pytest.approx(
            float(still), rel=1e-3
        )
        assert (errors["center"] < 0.01 * errors["unlearned/center"]) == align
    assert not task(align_scale=True).model.objectives["PosePrediction"].uses_lengths  # type: ignore[union-attr]
    with pytest.raises(InputError, match="a multiple of 16"):
        PosePrediction(dim=40)


def test_targets_of_float32_cameras_are_exact_under_autocast() -> None:
    """Autocast would compose the poses in bfloat16, with errors of 4e-4 in a rotation and 0.009 in a translation."""
    generator = torch.Generator().manual_seed(0)
    rotation = torch.linalg.qr(torch.randn(1, 6, 3, 3, generator=generator)).Q
    poses = torch.eye(4).repeat(1, 6, 1, 1)
    poses[..., :3, :3] = rotation * torch.linalg.det(rotation)[..., None, None]
    poses[..., :3, 3] = 3 * torch.randn(1, 6, 3, generator=generator)
    K_px = torch.tensor([[40.0, 0, 32], [0, 40, 24], [0, 0, 1]]).expand(1, 6, 3, 3)
    predictions = torch.zeros(4, 1, 6, 9)
    exact = camera_loss(predictions, poses, K_px, (48, 64), balance=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = camera_loss(predictions, poses, K_px, (48, 64), balance=True)
        in_bfloat16 = poses @ invert_se3(poses[:, :1])
    assert all(torch.equal(exact[name], cast[name]) for name in exact)
    assert (in_bfloat16.float() - poses @ invert_se3(poses[:, :1])).abs().max() > 1e-3  # what autocast would do
