"""VGGT's targets and losses: slow references and invariances."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from tests.poses import random_poses
from zoo.geometry import SceneGeometry, VGGTOutput
from zoo.geometry.layers import quaternion_to_rotation, rotation_to_quaternion
from zoo.tasks.vggt_pretraining import ALPHA, HUBER, camera_loss, constant_baseline, dense_loss, errors, losses, targets

HEIGHT, WIDTH = 4, 6
K = torch.tensor([[0.8, 0, 0.05], [0, 1.1, -0.1], [0, 0, 1]], dtype=torch.float64)


def scene(seed: int = 0, frames: int = 3, unit: float = 1.0, move: Tensor | None = None) -> SceneGeometry:
    poses = random_poses(frames, seed)
    poses = poses if move is None else poses @ move
    poses[:, :3, 3] *= unit
    depth = 1 + torch.rand(frames, HEIGHT, WIDTH, generator=torch.Generator().manual_seed(seed))
    depth[0, 0, :2] = 0
    depth[2:, 3, 5] = 0
    return SceneGeometry(world_to_camera=poses, K_normalized=K.expand(frames, 3, 3), depth=unit * depth)


def perfect(truth) -> VGGTOutput:
    ones = torch.ones_like(truth.depth)
    return VGGTOutput(
        tokens={},
        patch_start=5,
        pose_enc=truth.pose_enc,
        pose_enc_list=truth.pose_enc.expand(4, *truth.pose_enc.shape),
        depth=truth.depth[..., None],
        depth_conf=ones,
        points=truth.points,
        points_conf=ones,
    )


# ---- targets ----------------------------------------------------------------------------------------------


def test_targets_against_a_slow_reference() -> None:
    one = scene()
    truth = targets([one])
    K_px = torch.tensor([[0.8 * WIDTH, 0, 0.55 * WIDTH], [0, 1.1 * HEIGHT, 0.4 * HEIGHT], [0, 0, 1]]).double()
    points = torch.zeros(3, HEIGHT, WIDTH, 3, dtype=torch.float64)
    for s in range(3):
        to_first = one.world_to_camera[0] @ torch.linalg.inv(one.world_to_camera[s])
        for v in range(HEIGHT):
            for u in range(WIDTH):
                ray = torch.linalg.inv(K_px) @ torch.tensor([u + 0.5, v + 0.5, 1], dtype=torch.float64)
                points[s, v, u] = to_first[:3, :3] @ (ray * one.depth[s, v, u]) + to_first[:3, 3]
    known = one.depth > 0
    unit = points[known].norm(dim=-1).mean()
    assert torch.equal(truth.known[0], known) and 0 < (~known).sum() < known.sum()
    assert torch.allclose(truth.points[0][known].double(), points[known] / unit, atol=1e-5)
    assert torch.allclose(truth.depth[0].double(), one.depth.double() / unit, atol=1e-5)
    relative = one.world_to_camera[2] @ torch.linalg.inv(one.world_to_camera[0])
    assert torch.allclose(truth.pose_enc[0, 2, :3].double(), relative[:3, 3] / unit, atol=1e-5)
    assert torch.allclose(truth.pose_enc[0, 2, 3:7].double(), rotation_to_quaternion(relative[:3, :3]), atol=1e-5)
    fov = [2 * math.atan(0.5 / 1.1), 2 * math.atan(0.5 / 0.8)]  # vertical first
    assert torch.allclose(truth.pose_enc[0, :, 7:], torch.tensor(fov).expand(3, 2), atol=1e-6)


def test_targets_are_invariant_to_world_and_unit() -> None:
    first = targets([scene()])
    for other in (targets([scene(unit=3.7)]), targets([scene(move=random_poses(1, 9)[0])])):
        for name in ("pose_enc", "depth", "points"):
            assert torch.allclose(getattr(first, name), getattr(other, name), atol=1e-5), name
    stretched = scene()
    stretched.depth = stretched.depth * 2  # the depth alone: another scene
    assert not torch.allclose(first.points, targets([stretched]).points, atol=1e-2)


def test_each_scene_has_its_own_unit() -> None:
    both = targets([scene(0), scene(1, unit=5)])
    for i, alone in enumerate((targets([scene(0)]), targets([scene(1, unit=5)]))):
        assert torch.allclose(both.points[i], alone.points[0], atol=1e-6)
    mean = (both.points.norm(dim=-1) * both.known).flatten(1).sum(1) / both.known.flatten(1).sum(1)
    assert torch.allclose(mean, torch.ones(2), atol=1e-5)


def test_incomplete_scenes_are_errors() -> None:
    blind, lost = scene(), scene()
    blind.depth = blind.depth * 0
    lost.has_camera = torch.tensor([True, False, True])
    for bad, message in ((blind, "no pixel"), (lost, "lacks some")):
        with pytest.raises(ValueError, match=message):
            targets([bad])


# ---- losses -----------------------------------------------------------------------------------------------


def test_the_ground_truth_has_zero_loss_and_error() -> None:
    truth = targets([scene(), scene(1)])
    found = losses(perfect(truth), truth)
    assert set(found) == {"camera", "depth", "points"} and torch.stack(list(found.values())).abs().max() < 1e-5
    assert all(float(error.abs().max()) < 1e-2 for error in errors(perfect(truth), truth).values())
    other = perfect(targets([scene(2), scene(3)]))
    assert all(float(loss.min()) > 0.1 for loss in losses(other, truth).values())
    only = VGGTOutput(tokens={}, patch_start=5, depth=other.depth, depth_conf=other.depth_conf)
    assert set(losses(only, truth)) == {"depth"} and set(errors(only, truth)) == {"depth_relative"}


def test_dense_loss_against_a_slow_reference() -> None:
    generator = torch.Generator().manual_seed(0)
    values, truth = torch.randn(2, 1, 2, 3, 4, 3, generator=generator, dtype=torch.float64)
    confidence = 1 + torch.rand(1, 2, 3, 4, generator=generator, dtype=torch.float64)
    known = torch.rand(1, 2, 3, 4, generator=generator) > 0.3
    terms: dict[str, list[Tensor]] = {"value": [], "down": [], "right": []}
    for s in range(2):
        for v in range(3):
            for u in range(4):
                here = (0, s, v, u)
                if not known[here]:
                    continue
                off = values[here] - truth[here]
                terms["value"].append(confidence[here] * off.norm() - ALPHA * confidence[here].log())
                for name, there in (("down", (0, s, v + 1, u)), ("right", (0, s, v, u + 1))):
                    if there[2] < 3 and there[3] < 4 and known[there]:
                        change = (values[there] - values[here]) - (truth[there] - truth[here])
                        terms[name].append(confidence[here] * change.norm())
    expected = sum(torch.stack(each).mean() for each in terms.values())
    assert torch.allclose(dense_loss(values, confidence, truth, known), expected)
    nonsense = torch.where(known[..., None], values, 1e6)
    assert torch.allclose(dense_loss(nonsense, confidence, truth, known), expected)
    assert not torch.allclose(dense_loss(values, confidence, truth, torch.ones_like(known)), expected)
    both = [torch.cat((each, other)) for each, other in ((values, truth), (confidence, confidence), (truth, values))]
    alone = dense_loss(truth, confidence, values, ~known)
    assert torch.allclose(dense_loss(*both, torch.cat((known, ~known))), torch.cat((expected.view(1), alone)))


def test_the_optimal_confidence_is_alpha_over_the_error() -> None:
    truth = torch.zeros(1, 1, 4, 4, 1)
    for error, settled in ((0.1, ALPHA / 0.1), (0.05, ALPHA / 0.05)):
        confidence = torch.full((1, 1, 4, 4), settled, requires_grad=True)
        dense_loss(truth + error, confidence, truth, truth[..., 0] == 0).backward()
        assert confidence.grad.abs().max() < 1e-6
    confidence = torch.full((1, 1, 4, 4), 1.0, requires_grad=True)
    dense_loss(truth + 0.1, confidence, truth, truth[..., 0] == 0).backward()
    assert (confidence.grad < 0).all()  # it is to rise


def test_camera_loss_against_a_slow_reference() -> None:
    steps = torch.randn(4, 2, 3, 9, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    truth = steps[3] + 0.2 * torch.randn(2, 3, 9, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    expected, weights = 0.0, [0.6**3, 0.6**2, 0.6, 1.0]
    for step, weight in zip(steps, weights, strict=True):
        off = (step - truth).abs()
        huber = torch.where(off < HUBER, off**2 / (2 * HUBER), off - HUBER / 2)
        expected += weight / sum(weights) * huber.sum(-1).mean(1)  # of each scene
    assert torch.allclose(camera_loss(steps, truth), expected)
    assert (camera_loss(steps.flip(0), truth) > camera_loss(steps, truth) + 0.1).all()  # the last step is the best here


# ---- errors -----------------------------------------------------------------------------------------------


def test_errors_have_their_units() -> None:
    truth = targets([scene(), scene(1)])
    output = perfect(truth)
    assert output.depth is not None
    turn = torch.eye(3).repeat(2, 3, 1, 1)
    c, s = math.cos(math.radians(10)), math.sin(math.radians(10))
    turn[1, 1:] = torch.tensor([[c, -s, 0], [s, c, 0], [0, 0, 1]])  # scene 1, all but the first frame
    R = quaternion_to_rotation(truth.pose_enc[..., 3:7])
    turned = torch.cat((truth.pose_enc[..., :3], rotation_to_quaternion(turn @ R), truth.pose_enc[..., 7:]), -1)
    output.pose_enc = turned
    output.depth = output.depth * torch.tensor([1.0, 1.25]).view(2, 1, 1, 1, 1)
    found = errors(output, truth)
    assert torch.allclose(found["rotation_deg"], torch.tensor([0.0, 10.0]), atol=0.1)
    assert torch.allclose(found["depth_relative"], torch.tensor([0.0, 0.25]), atol=1e-4)
    moved = truth.pose_enc.clone()
    moved[0, 2, :3] += torch.tensor([0.0, 0.3, 0.4])  # one of two frames, by half a unit
    output.pose_enc = moved
    assert torch.allclose(errors(output, truth)["center"], torch.tensor([0.25, 0.0]), atol=1e-4)


def test_a_single_frame_has_no_pose_error() -> None:
    truth = targets([scene(frames=1)])
    assert set(errors(perfect(truth), truth)) == {"depth_relative"}
    assert losses(perfect(truth), truth)["camera"].isfinite().all()


def test_errors_of_the_constant_baseline() -> None:
    truth = targets([scene(), scene(1)])
    found = errors(constant_baseline(truth), truth)
    R = quaternion_to_rotation(truth.pose_enc[..., 3:7])
    cosines = (R.diagonal(dim1=-2, dim2=-1).sum(-1) - 1) / 2
    assert torch.allclose(found["rotation_deg"], cosines.acos().rad2deg()[:, 1:].mean(1), atol=0.1)
    centers = (-R.mT @ truth.pose_enc[..., :3, None]).norm(dim=(-2, -1))
    assert torch.allclose(found["center"], centers[:, 1:].mean(1), atol=1e-4)

    def off(depth: float) -> Tensor:
        return torch.stack([(1 - depth / d[d > 0]).abs().mean() for d in truth.depth])

    assert torch.allclose(found["depth_relative"], off(float(truth.depth[truth.known].median())), atol=1e-5)
    assert (errors(perfect(truth), truth)["rotation_deg"] < 0.1).all()  # control: who has looked is not
