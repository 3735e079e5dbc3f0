"""Cameras that are predicted by one head across all views of a scene."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from tests.zoo.asking import QUESTIONS, RATES, batch, scene
from zoo import InputError, PosePrediction, TinyQwen25VL, VideoQATask
from zoo.cameras.poses import invert_se3
from zoo.geometry.vggt import cameras_to_pose_encoding
from zoo.objectives import Decoded
from zoo.objectives.cambrian_p import camera_loss, mean_path


def task(**options: Any) -> VideoQATask:
    torch.manual_seed(0)
    backbone = TinyQwen25VL(layers=2, hidden_size=64, heads=2, key_value_heads=2, vision_hidden_size=32)
    objective = PosePrediction(dim=32, trunk_depth=1, **options)
    return VideoQATask(backbone=backbone, learning_rates=RATES, objectives=[objective])


def decoded(made: VideoQATask, *shown: Any) -> Decoded:
    asked = batch(made, *shown, training=True)
    assert asked.sequences is not None
    return made.model.decode(made.model.encode_scenes(asked), asked.sequences)


def test_its_loss_is_cambrian_ps_on_the_cameras_of_the_views() -> None:
    made = task()
    shown = scene("a", QUESTIONS[:2])
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


@pytest.mark.parametrize("seed", range(6))
def test_fields_of_view_start_where_they_learn(seed: int) -> None:
    """Camera tokens hardly differ at first: where one output is below 0, so are all."""
    torch.manual_seed(seed)
    objective = PosePrediction(dim=32, trunk_depth=1)
    objective.bind(64, 2)
    found = objective.head(torch.randn(64) + 0.01 * torch.randn(1, 8, 64))[..., 7:]
    assert (found > 0).all()
    found.sum().backward()
    assert objective.head.camera_head.pose_branch.fc2.weight.grad[7:].any(1).all()


def test_balanced_translations_are_divided_by_the_mean_path_of_the_batch() -> None:
    """Not each by its own path, which would make a scene of any length count alike."""
    short, long = scene("a", QUESTIONS[:1]), scene("b", QUESTIONS[:1])
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


def test_views_without_a_camera_add_nothing_to_the_path() -> None:
    made, shown = task(), scene("a", QUESTIONS[:1])
    objective: Any = made.model.objectives["PosePrediction"]
    assert shown.geometry is not None and shown.geometry.world_to_camera is not None
    poses = shown.geometry.world_to_camera[::2].clone()
    for unknown, expected in ((slice(2, 4), [0, 0, 2]), (slice(0, 2), [1, 1, 2]), (slice(4, 6), [0, 1, 1])):
        shown.geometry.world_to_camera = poses.repeat_interleave(2, 0)
        shown.geometry.world_to_camera[unknown] = torch.nan
        shown.geometry.has_camera = torch.ones(6, dtype=torch.bool)
        shown.geometry.has_camera[unknown] = False
        ((_, _, found, _, _),) = objective._pairs(decoded(made, shown))
        torch.testing.assert_close(found, poses[expected].to(found))


def test_views_without_a_camera_and_the_scale_of_a_scene() -> None:
    shown = scene("a", QUESTIONS[:1])
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
        again = scene("a", QUESTIONS[:1])
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
        read = decoded(made, scene("a", QUESTIONS[:1]))
        (_, _, poses, _, _), *_ = objective._pairs(read)
        exact = cameras_to_pose_encoding(poses @ invert_se3(poses[:1]), torch.eye(3).expand(len(poses), 3, 3), (1, 1))
        exact[:, :3] /= 2
        objective.head.forward = lambda states, exact=exact: exact.expand(4, 1, -1, -1)
        errors = objective.errors(read)
        assert errors["rotation_deg"] < 0.1 and errors["unlearned/center"] > 0.01
        assert (errors["center"] < 0.01 * errors["unlearned/center"]) == align
    assert not task(align_scale=True).model.objectives["PosePrediction"].uses_lengths  # type: ignore[union-attr]
    with pytest.raises(InputError, match="a multiple of 16"):
        PosePrediction(dim=40)
