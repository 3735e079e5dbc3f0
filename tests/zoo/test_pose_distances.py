"""Pose distances: accurate near 0 and pi, invariant to a change of world, and checked by matrix_exp."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from tests.zoo.test_cameras import random_poses, rotation
from zoo.poses import PoseMeasure, path_length, pose_distance, pose_distances, se3_log, so3_log

MEASURES: list[PoseMeasure] = ["rotation", "center", "euclidean", "sum", "log"]
ANGLES = [0.0, 1e-12, 1e-8, 1e-4, 0.0199, 0.0201, 0.5, math.pi / 2, 3.0, math.pi - 1e-4, math.pi - 1e-8]
AXIS = torch.tensor([0.3, -2.0, 1.0], dtype=torch.float64)


def exponential(twist: Tensor) -> Tensor:
    """Computes the matrix exponential of a twist."""
    x, y, z, *u = twist.tolist()
    matrix = torch.tensor([[0, -z, y], [z, 0, -x], [-y, x, 0], [0, 0, 0]], dtype=torch.float64)
    column = torch.tensor([*u, 0.0], dtype=torch.float64)[:, None]
    return torch.linalg.matrix_exp(torch.cat((matrix, column), 1))


@pytest.mark.parametrize("angle", ANGLES)
def test_log_inverts_the_exponential(angle: float) -> None:
    twist = torch.cat((angle * AXIS / AXIS.norm(), torch.tensor([2.0, -1.0, 0.5], dtype=torch.float64)))
    torch.testing.assert_close(se3_log(exponential(twist)), twist, rtol=0, atol=2e-12)


@pytest.mark.parametrize("axis", [[1.0, 0, 0], [0, 1.0, 0], [0, 0, -1.0], [1.0, -1.0, 1e-9]])
def test_rotation_by_pi(axis: list[float]) -> None:
    R = rotation(torch.tensor(axis), math.pi)
    omega = so3_log(R)
    assert abs(float(omega.norm()) - math.pi) < 1e-12
    torch.testing.assert_close(exponential(torch.cat((omega, omega * 0)))[:3, :3], R, rtol=0, atol=1e-12)


def test_log_of_a_batch() -> None:
    poses = random_poses(4, 5)
    back = torch.stack([exponential(twist) for twist in se3_log(poses).flatten(0, 1)]).view_as(poses)
    torch.testing.assert_close(back, poses, rtol=0, atol=1e-12)


@pytest.mark.parametrize("measure", MEASURES)
def test_measures_match_definition(measure: PoseMeasure) -> None:
    a, b = random_poses(6), random_poses(6, seed=1)
    w, t = pose_distance(a, b)
    if measure == "log":
        twist = se3_log(a @ torch.linalg.inv(b))
        twist[:, 3:] *= 0.3
        expected = torch.stack([_twist_matrix(each).norm() for each in twist])
    else:
        expected = {"rotation": w, "center": 0.3 * t, "euclidean": (w**2 + 0.09 * t**2) ** 0.5, "sum": w + 0.3 * t}[
            measure
        ]
    torch.testing.assert_close(pose_distances(a, b, measure, 0.3), expected, rtol=0, atol=1e-12)


def _twist_matrix(twist: Tensor) -> Tensor:
    x, y, z, *u = twist.tolist()
    return torch.tensor([[0, -z, y, u[0]], [z, 0, -x, u[1]], [-y, x, 0, u[2]], [0, 0, 0, 0]], dtype=torch.float64)


@pytest.mark.parametrize("measure", MEASURES)
def test_distances_are_symmetric_and_invariant_to_a_change_of_world(measure: PoseMeasure) -> None:
    poses, world = random_poses(5), random_poses(1, seed=2)[0]
    distance = pose_distances(poses[:, None], poses[None], measure)
    assert torch.equal(distance.diagonal(), torch.zeros(5, dtype=torch.float64))
    torch.testing.assert_close(distance, distance.mT, rtol=0, atol=1e-12)
    moved = poses @ world
    torch.testing.assert_close(pose_distances(moved[:, None], moved[None], measure), distance, rtol=0, atol=1e-10)
    assert distance[0, 1] > 0.1
    if measure == "center":  # control: a change on the other side, as for camera-to-world poses
        wrong = world @ poses
        assert (pose_distances(wrong[:, None], wrong[None], measure) - distance).abs().max() > 0.1


def test_unknown_measure() -> None:
    with pytest.raises(Exception, match="measure"):
        pose_distances(torch.eye(4), torch.eye(4), "angle")  # type: ignore[arg-type]


def test_path_length_sums_the_steps() -> None:
    poses = random_poses(6)
    steps = [float(pose_distances(a, b, "sum", 2.0)) for a, b in zip(poses, poses[1:], strict=False)]
    expected = torch.tensor([sum(steps[:k]) for k in range(6)], dtype=torch.float64)
    torch.testing.assert_close(path_length(poses, "sum", 2.0), expected, rtol=0, atol=1e-12)
    assert path_length(poses[:1]).tolist() == [0.0]
