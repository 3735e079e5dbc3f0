"""The camera of two merged frames: the first, the last, or their midpoint."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from tests.poses import random_poses
from zoo.cameras.scene_geometry import PatchCameras, merge_cameras, stack_cameras
from zoo.errors import InputError
from zoo.geometry import SceneGeometry
from zoo.geometry.layers import quaternion_to_rotation
from zoo.scene_encoding import scene_points

AXIS = torch.tensor([0.6, 0.0, 0.8], dtype=torch.float64)


def rotation(angle: float) -> Tensor:
    x, y, z = (AXIS * angle).tolist()
    return torch.linalg.matrix_exp(torch.tensor([[0, -z, y], [z, 0, -x], [-y, x, 0]], dtype=torch.float64))


def camera(angle: float, center: tuple[float, float, float]) -> Tensor:
    """World-to-camera, of a camera that is turned by an angle about AXIS."""
    pose = torch.eye(4, dtype=torch.float64)
    pose[:3, :3] = rotation(angle).T
    pose[:3, 3] = -pose[:3, :3] @ torch.tensor(center, dtype=torch.float64)
    return pose


def scene(*present: bool, turn: float = 2.8) -> SceneGeometry:
    """Two steps: of a camera that turns and moves, and of one that moves alone."""
    poses = [camera(0.4, (0, 0, 0)), camera(0.4 + turn, (2, -4, 6)), camera(0, (1, 1, 1)), camera(0, (3, 1, 1))]
    K = torch.eye(3, dtype=torch.float64).repeat(4, 1, 1)
    K[1, 0, 0] = 2.0
    known: dict[str, Any] = {"has_camera": torch.tensor(present)} if present else {}
    return SceneGeometry(world_to_camera=torch.stack(poses), K_normalized=K, **known)


@pytest.mark.parametrize("turn", [2.8, 1e-3, 0.0])
def test_the_mean_lies_half_way(turn: float) -> None:
    poses, K, has_camera, _ = merge_cameras(scene(turn=turn), "mean")
    expected = torch.stack([camera(0.4 + turn / 2, (1, -2, 3)), camera(0, (2, 1, 1))])
    torch.testing.assert_close(poses, expected, rtol=0, atol=1e-12)
    assert K[:, 0, 0].tolist() == [1.5, 1.0] and has_camera.all()


@pytest.mark.parametrize(("pair", "frames"), [("first", [0, 2]), ("last", [1, 3])])
def test_the_first_or_the_last(pair: Any, frames: list[int]) -> None:
    poses, K, *_ = merge_cameras(scene(), pair)
    given = scene().cameras()
    assert torch.equal(poses, given[0][frames])
    assert torch.equal(K, given[1][frames])
    midpoint, *_ = merge_cameras(scene(), "mean")  # the control
    assert (midpoint - poses).abs().amax((1, 2)).min() > 0.1


@pytest.mark.parametrize("pair", ["first", "last", "mean"])
def test_a_frame_without_a_camera_takes_the_other_frames(pair: Any) -> None:
    poses, _, has_camera, _ = merge_cameras(scene(False, True, True, False), pair)
    assert torch.equal(poses, scene().cameras()[0][[1, 2]]) and has_camera.all()
    poses, _, has_camera, _ = merge_cameras(scene(False, False, True, True), pair)
    assert has_camera.tolist() == [False, True]
    assert torch.equal(poses[0], poses[1])  # stands in, and is not seen


def merged_one_by_one(
    scene: SceneGeometry, quaternions: Tensor, merged: str
) -> tuple[list[Tensor], list[Tensor], list[bool]]:
    """The slow reference: patch by patch; the midpoint of two rotations from the sum of their quaternions."""
    poses, K, present = scene.cameras()
    found: list[tuple[Tensor, Tensor] | None] = []
    for first in range(0, len(poses), 2):
        frames = [i for i in (first, first + 1) if present[i]]
        if len(frames) == 2 and merged == "mean":
            one, other = quaternions[first], quaternions[first + 1]
            turn = quaternion_to_rotation(one + other if one @ other > 0 else one - other)  # to the world
            center = sum(-poses[i, :3, :3].T @ poses[i, :3, 3] for i in frames) / 2
            pose = torch.eye(4, dtype=torch.float64)
            pose[:3, :3], pose[:3, 3] = turn.T, -turn.T @ center
            found.append((pose, (K[first] + K[first + 1]) / 2))
        elif frames:
            chosen = frames[-1] if merged == "last" else frames[0]
            found.append((poses[chosen], K[chosen]))
        else:
            found.append(None)
    known = [each is not None for each in found]
    valid = next((each for each in found if each is not None), None)  # stands in
    every = [each or valid or (poses[i], K[i]) for i, each in enumerate(found)]
    return [pose for pose, _ in every], [intrinsics for _, intrinsics in every], known


@pytest.mark.parametrize("merged", ["first", "last", "mean"])
def test_merged_cameras_are_those_of_a_walk_over_the_patches(merged: Any) -> None:
    """Where frames have cameras at random, also in none of the patches."""
    patterns = set()
    for seed in range(40):
        generator = torch.Generator().manual_seed(seed)
        count = 2 * int(torch.randint(1, 6, (), generator=generator))
        quaternions = torch.nn.functional.normalize(
            torch.randn(count, 4, generator=generator, dtype=torch.float64), dim=-1
        )
        poses = torch.eye(4, dtype=torch.float64).repeat(count, 1, 1)
        poses[:, :3, :3] = quaternion_to_rotation(quaternions).mT
        poses[:, :3, 3] = torch.randn(count, 3, generator=generator, dtype=torch.float64)
        K = torch.diag_embed(torch.rand(count, 3, generator=generator, dtype=torch.float64) + 0.5)
        has_camera = torch.rand(count, generator=generator) < (seed % 4) / 3
        scene = SceneGeometry(world_to_camera=poses, K_normalized=K, has_camera=has_camera)
        found = merge_cameras(scene, merged)
        expected_poses, expected_K, known = merged_one_by_one(scene, quaternions, merged)
        if any(known):
            torch.testing.assert_close(found.world_to_camera, torch.stack(expected_poses), rtol=0, atol=1e-9)
            torch.testing.assert_close(found.K_normalized, torch.stack(expected_K), rtol=0, atol=1e-12)
        assert found.has_camera.tolist() == known and not found.is_complete  # which only a host may say
        patterns |= {tuple(pair.tolist()) for pair in has_camera.view(-1, 2)} | {any(known)}
    assert len(patterns) == 6


def test_stacked_cameras_are_those_of_each_row_and_identities() -> None:
    def patches(count: int, seed: int) -> PatchCameras:
        poses = random_poses(count, seed)
        return PatchCameras(poses, poses[:, :3, :3].clone(), torch.arange(count) % 2 == 0)

    a, b, c = patches(2, 0), patches(3, 1), patches(1, 2).map(lambda x: x.float() if x.is_floating_point() else x)
    poses, K, present = stack_cameras([[a, b], [], [c]])
    assert poses.shape == (3, 5, 4, 4) and poses.dtype == torch.float64
    assert torch.equal(poses[0], torch.cat((a[0], b[0]))) and torch.equal(K[0], torch.cat((a[1], b[1])))
    assert torch.equal(poses[2, 0], c[0][0].double()) and torch.equal(
        poses[2, 1:], torch.eye(4).double().expand(4, 4, 4)
    )
    assert torch.equal(poses[1], torch.eye(4).double().expand(5, 4, 4)) and torch.equal(K[1, 0], torch.eye(3).double())
    assert present.tolist() == [[True, False, True, False, True], [False] * 5, [True, False, False, False, False]]


def test_points_are_of_the_first_frame() -> None:
    deep = scene()
    deep.depth = torch.ones(4, 28, 28)
    with pytest.raises(InputError, match="leave --model.merged_camera first"):
        scene_points(deep, 1, "mean")
    assert scene_points(deep, 1).shape == (2, 1, 1, 3)


def test_the_midpoint_has_the_gradient_of_its_finite_differences() -> None:
    generator = torch.Generator().manual_seed(0)
    K = torch.eye(3, dtype=torch.float64).expand(2, 3, 3)

    def merged(twists: torch.Tensor) -> torch.Tensor:
        poses = torch.eye(4, dtype=torch.float64).repeat(2, 1, 1)
        skew = twists - twists.mT
        poses = torch.cat((torch.cat((torch.linalg.matrix_exp(skew), twists[..., :1]), -1), poses[:, 3:]), 1)
        return merge_cameras(SceneGeometry(world_to_camera=poses, K_normalized=K), "mean").world_to_camera

    twists = torch.randn(2, 3, 3, generator=generator, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(merged, (twists,), rtol=1e-5)
