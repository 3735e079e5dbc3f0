"""Rigid poses: inverse, distances (also near 0 and pi), logarithm, powers, projection to SO(3); autocast."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from tests.zoo.cameras.test_cameras import eye_intrinsics, random_poses, rotation
from zoo import Cameras
from zoo.cameras import invert_se3, pose_distance
from zoo.cameras.poses import (
    PoseMeasure,
    intrinsics_power,
    nearest_rotation,
    path_length,
    pose_distances,
    rotation_power,
    se3_log,
    so3_log,
)


def test_invert_se3_is_the_inverse() -> None:
    poses = random_poses(4, 3, scale=10.0)
    torch.testing.assert_close(invert_se3(poses), torch.linalg.inv(poses), rtol=0, atol=1e-12)
    assert torch.equal(invert_se3(torch.eye(4)), torch.eye(4))


def test_autocast_does_not_round_poses() -> None:
    poses = random_poses(4, scale=10.0).float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inverse, (angle, distance) = invert_se3(poses), pose_distance(poses[0], poses[1])
        rounded = poses[..., :3, :3].mT @ poses[..., :3, 3:]  # control
        canonical = Cameras(poses[None], eye_intrinsics(1, 4).float()).canonical().world_to_camera
    assert rounded.dtype == torch.bfloat16 and inverse.dtype == torch.float32
    torch.testing.assert_close(inverse, torch.linalg.inv(poses), rtol=0, atol=1e-5)
    for value, exact in zip((angle, distance), pose_distance(poses[0], poses[1]), strict=True):
        assert torch.equal(value, exact)
    assert torch.equal(canonical, Cameras(poses[None], eye_intrinsics(1, 4).float()).canonical().world_to_camera)


@pytest.mark.parametrize("angle", [0.0, 1e-6, 1e-3, 1.0, 3.0, math.pi - 1e-6, math.pi])
def test_pose_distance_angle(angle: float) -> None:
    a = random_poses(1)[0]
    b = a.clone()
    b[:3, :3] = rotation(torch.tensor([0.3, -2.0, 1.0]), angle) @ a[:3, :3]
    measured, _ = pose_distance(a, b)
    assert abs(float(measured) - angle) < 1e-14 + 1e-9 * angle
    single = float(pose_distance(a.float(), b.float())[0])
    assert abs(single - angle) < 1e-6
    if angle == 1e-3:  # control: acos of the trace in float32 is inaccurate here
        relative = a[:3, :3].float() @ b[:3, :3].float().T
        assert abs(float(((relative.trace() - 1) / 2).clamp(-1, 1).acos()) - angle) > 1e-5


def test_pose_distance_broadcasts_and_is_invariant_to_a_change_of_world() -> None:
    poses, world = random_poses(5), random_poses(1, seed=2)[0]
    angle, distance = pose_distance(poses[:, None], poses[None])
    assert angle.shape == distance.shape == (5, 5)
    centers = torch.linalg.inv(poses)[:, :3, 3]
    torch.testing.assert_close(distance, torch.cdist(centers, centers), rtol=0, atol=1e-7)
    moved = pose_distance(poses[:, None] @ world, poses[None] @ world)
    torch.testing.assert_close(angle, moved[0], rtol=0, atol=1e-7)
    torch.testing.assert_close(distance, moved[1], rtol=0, atol=1e-12)


def test_nearest_rotation() -> None:
    exact = random_poses(3)[:, :3, :3]
    noise = 4e-4 * torch.randn(3, 3, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    near = nearest_rotation(exact + noise)
    torch.testing.assert_close(near @ near.mT, eye_intrinsics(3), rtol=0, atol=1e-14)
    assert torch.linalg.det(near).min() > 0
    assert (near - exact).abs().max() < 2 * noise.abs().max()
    torch.testing.assert_close(nearest_rotation(near), near, rtol=0, atol=1e-14)
    assert nearest_rotation(exact.float()).dtype == torch.float32


def test_invalid_rotations_raise() -> None:
    good = random_poses(3)[:, :3, :3]
    for spoil, reason in (
        (lambda R: R * 1.02, "off orthonormal by 0.04"),
        (lambda R: R * -1, "is a reflection"),
        (lambda R: R * float("nan"), "NaN or infinite"),
        (lambda R: R * 0, "off orthonormal by 1"),
    ):
        bad = good.clone()
        bad[1] = spoil(bad[1])
        with pytest.raises(ValueError, match=f"kitchen.cameras.json: frame 1: the rotation .*{reason}"):
            nearest_rotation(bad, "kitchen.cameras.json", "frame")


MEASURES: list[PoseMeasure] = ["rotation", "center", "euclidean", "sum", "log"]
ANGLES = [0.0, 1e-12, 1e-8, 1e-4, 0.0199, 0.0201, 0.5, math.pi / 2, 3.0, math.pi - 1e-4, math.pi - 1e-8]
AXIS = torch.tensor([0.3, -2.0, 1.0], dtype=torch.float64)


def exponential(twist: Tensor) -> Tensor:
    """Compute the matrix exponential of a twist."""
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


def test_path_length_sums_the_steps() -> None:
    poses = random_poses(6)
    steps = [float(pose_distances(a, b, "sum", 2.0)) for a, b in zip(poses, poses[1:], strict=False)]
    expected = torch.tensor([sum(steps[:k]) for k in range(6)], dtype=torch.float64)
    torch.testing.assert_close(path_length(poses, "sum", 2.0), expected, rtol=0, atol=1e-12)
    assert path_length(poses[:1]).tolist() == [0.0]


# ---- powers ----------------------------------------------------------------------------------------------------------

ENDS = [0.0, 1e-12, 1e-6, 0.5, math.pi / 2, 3.0, math.pi - 1e-8, math.pi]


def exponents(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


@pytest.mark.parametrize("angle", ENDS)
def test_the_power_of_a_rotation_turns_about_the_same_axis(angle: float) -> None:
    R, a = rotation(AXIS, angle), exponents(0.0, 0.3, 1.0, -2.0)
    expected = torch.stack([rotation(AXIS, each * angle) for each in a.tolist()])
    given = rotation_power(R, a)
    # half a turn has two logarithms
    errors = [(given - other).abs().max() for other in (expected, *([expected.mT] if angle > 3.1 else []))]
    assert min(errors) < 1e-12
    assert torch.equal(given[0], torch.eye(3, dtype=torch.float64))
    torch.testing.assert_close(given[2], R, rtol=0, atol=1e-12)
    if angle > 0.1:  # the control: a mean of entries is no rotation
        mixed = 0.7 * torch.eye(3, dtype=torch.float64) + 0.3 * R
        assert (mixed - given[1]).abs().max() > 1e-3


def test_powers_of_a_rotation_add_up() -> None:
    R, a, b = random_poses(5)[:, :3, :3], exponents(0.4), exponents(0.3)
    product = rotation_power(R, a) @ rotation_power(R, b)
    torch.testing.assert_close(rotation_power(R, a + b), product, rtol=0, atol=1e-14)
    assert (rotation_power(R, a * b) - product).abs().max() > 1e-3  # the control


@pytest.mark.parametrize("angle", ENDS)
@pytest.mark.parametrize("exponent", [0.0, 0.5, 1.0])
def test_the_derivative_with_respect_to_the_exponent(exponent: float, angle: float) -> None:
    """It is log(R) at 0, so training can leave the identity, and finite at half a turn."""
    R, a = rotation(AXIS, angle), torch.tensor(exponent, dtype=torch.float64, requires_grad=True)
    derivative = torch.autograd.functional.jacobian(lambda x: rotation_power(R, x), a)
    x, y, z = so3_log(R).tolist()
    generator = torch.tensor([[0, -z, y], [z, 0, -x], [-y, x, 0]], dtype=torch.float64)
    torch.testing.assert_close(derivative, generator @ rotation_power(R, a).detach(), rtol=0, atol=1e-12)


@pytest.mark.parametrize("focal", [0.3, 1 - 1e-9, 1.0, 1 + 1e-14, 2.5])
def test_powers_of_intrinsics_are_matrix_powers(focal: float) -> None:
    K = torch.tensor([[focal, 0, 0.05], [0, 1.1, -0.02], [0, 0, 1]], dtype=torch.float64)
    zero, half, one, two = intrinsics_power(K, exponents(0.0, 0.5, 1.0, 2.0))
    assert torch.equal(zero, torch.eye(3, dtype=torch.float64))
    for given, expected in ((one, K), (two, K @ K), (half @ half, K)):
        torch.testing.assert_close(given, expected, rtol=0, atol=1e-14)
    mean = (zero + K) / 2  # the control: a mean of entries is no root
    assert (mean @ mean - K).abs().max() > 1e-3
    a = torch.tensor(0.0, dtype=torch.float64, requires_grad=True)
    derivative = torch.autograd.functional.jacobian(lambda x: intrinsics_power(K, x), a)
    near = (intrinsics_power(K, exponents(1e-6)) - intrinsics_power(K, exponents(-1e-6)))[0] / 2e-6
    torch.testing.assert_close(derivative, near, rtol=0, atol=1e-8)
