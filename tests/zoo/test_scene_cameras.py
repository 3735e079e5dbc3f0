"""The camera of two merged frames: the first, the last, or their midpoint."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from zoo.cameras.patch_cameras import merge_cameras
from zoo.errors import InputError
from zoo.geometry import SceneGeometry
from zoo.scene_encoding.scene_cameras import scene_points

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


def test_points_are_of_the_first_frame() -> None:
    deep = scene()
    deep.depth = torch.ones(4, 28, 28)
    with pytest.raises(InputError, match="leave --model.merged_camera first"):
        scene_points(deep, 1, "mean")
    assert scene_points(deep, 1).shape == (2, 1, 1, 3)
