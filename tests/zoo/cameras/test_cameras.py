"""Cameras: conventions, precision, reference views, scales; the cameras of merged frames; windows of pictures; rays."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from lightning.fabric.utilities.apply_func import move_data_to_device
from lightning.pytorch.plugins import HalfPrecision
from torch import Tensor

from tests.zoo.geometry.projection import project_points
from zoo import Cameras
from zoo.cameras import SceneGeometry, intrinsics_in_pixels, normalize_intrinsics
from zoo.cameras.poses import quaternion_to_rotation
from zoo.cameras.rays import ray_directions, token_points
from zoo.cameras.scene_geometry import PatchCameras, Window, merge_cameras, stack_cameras
from zoo.encodings.testing import random_cameras
from zoo.scene_encoding import scene_points


def rotation(axis: Tensor, angle: float) -> Tensor:
    """Compute a rotation by Rodrigues' formula in float64."""
    x, y, z = (axis.double() / axis.double().norm()).tolist()
    K = torch.tensor([[0, -z, y], [z, 0, -x], [-y, x, 0]], dtype=torch.float64)
    return torch.eye(3, dtype=torch.float64) + math.sin(angle) * K + (1 - math.cos(angle)) * K @ K


def random_poses(*shape: int, seed: int = 0, scale: float = 1.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    count = math.prod(shape)
    axes = torch.randn(count, 3, generator=generator, dtype=torch.float64)
    angles = torch.rand(count, generator=generator, dtype=torch.float64) * math.pi
    poses = torch.eye(4, dtype=torch.float64).repeat(count, 1, 1)
    poses[:, :3, :3] = torch.stack([rotation(a, float(t)) for a, t in zip(axes, angles, strict=True)])
    poses[:, :3, 3] = scale * torch.randn(count, 3, generator=generator, dtype=torch.float64)
    return poses.view(*shape, 4, 4)


def eye_intrinsics(*shape: int) -> Tensor:
    return torch.eye(3, dtype=torch.float64).expand(*shape, 3, 3)


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        (torch.bfloat16, torch.float32),
        (torch.float16, torch.float32),
        (torch.float32, torch.float32),
        (torch.float64, torch.float64),
    ],
)
def test_at_least_float32(given: torch.dtype, kept: torch.dtype) -> None:
    cameras = Cameras(random_poses(2, 3).to(given), eye_intrinsics(2, 3).to(given))
    assert cameras.world_to_camera.dtype == cameras.K_normalized.dtype == kept
    moved = cameras.to(dtype=torch.bfloat16)
    assert moved.world_to_camera.dtype == moved.K_normalized.dtype == torch.float32


def test_lightning_moves_cameras_but_does_not_cast_them() -> None:
    cameras = Cameras(random_poses(2, 3), eye_intrinsics(2, 3), torch.zeros(2, 5, dtype=torch.long))
    batch = {"cameras": cameras, "pixels": torch.ones(2)}
    converted = HalfPrecision("bf16-true").convert_input(batch)
    assert converted["pixels"].dtype == torch.bfloat16
    assert converted["cameras"].world_to_camera.dtype == torch.float64
    moved = move_data_to_device(batch, torch.device("meta"))["cameras"]
    assert moved.world_to_camera.device.type == moved.index.device.type == "meta"


def test_indexing_selects_samples() -> None:
    cameras = Cameras(random_poses(3, 2), eye_intrinsics(3, 2), torch.tensor([[0, -1], [1, 0], [-1, -1]]))
    some = cameras[torch.tensor([1, 1, 0])]
    assert len(some) == 3
    assert torch.equal(some.world_to_camera, cameras.world_to_camera[[1, 1, 0]])
    assert some.index is not None and some.index.tolist() == [[1, 0], [1, 0], [0, -1]]


def test_index_and_shape_errors() -> None:
    poses, K = random_poses(2, 3), eye_intrinsics(2, 3)
    with pytest.raises(ValueError, match=r"from -1 to 3, but there are 3 cameras"):
        Cameras(poses, K, torch.tensor([[0, 3], [-1, 2]]))
    with pytest.raises((ValueError, TypeError), match=r"index"):
        Cameras(poses, K, torch.zeros(1, 4, dtype=torch.long))
    poses[1, 0, 0, 3] = float("nan")
    with pytest.raises(ValueError, match="NaN or infinite"):
        Cameras(poses, K)


def test_canonical_float32_far_from_the_origin() -> None:
    """Poses are composed in float64, so the only error is the rounding of the given poses."""
    world = random_poses(1, 1, seed=3, scale=100.0)
    poses = random_poses(1, 6) @ world
    exact = Cameras(poses.float().double(), eye_intrinsics(1, 6)).canonical().world_to_camera
    single = Cameras(poses.float(), eye_intrinsics(1, 6).float()).canonical().world_to_camera
    assert single.dtype == torch.float32
    torch.testing.assert_close(single.double(), exact, rtol=1e-7, atol=1e-7)
    naive = poses.float() @ torch.linalg.inv(poses[:, :1].float())  # control: composed in float32
    assert (naive.double() - exact).abs().max() > 10 * (single.double() - exact).abs().max()


REFERENCES = ("first", "middle", "medoid")


@pytest.mark.parametrize("reference", REFERENCES)
@pytest.mark.parametrize("views", [1, 2, 5, 6])
def test_every_reference_view_makes_the_world_cancel(reference: Any, views: int) -> None:
    poses, world = random_poses(2, views), random_poses(2, 1, seed=1, scale=50.0)
    here, there = (Cameras(each, eye_intrinsics(2, views)).canonical(reference) for each in (poses, poses @ world))
    torch.testing.assert_close(here.world_to_camera, there.world_to_camera, rtol=0, atol=1e-11)
    view = Cameras(poses, eye_intrinsics(2, views)).reference_view(reference)
    own = here.world_to_camera[torch.arange(2), view]
    assert torch.equal(own, torch.eye(4, dtype=torch.float64).expand(2, 4, 4))


def test_reference_views_are_used_cameras() -> None:
    """The batch is ragged: the second sample has only views 1, 2 and 4."""
    index = torch.tensor([[0, 1, 2, 3, 4, -1], [1, 2, 2, 4, -1, -1]])
    cameras = Cameras(random_poses(2, 5), eye_intrinsics(2, 5), index)
    assert cameras.used_mask().tolist() == [[True] * 5, [False, True, True, False, True]]
    assert cameras.reference_view("first").tolist() == [0, 1]
    assert cameras.reference_view("middle").tolist() == [2, 2]
    alone = Cameras(cameras.world_to_camera[1:, [1, 2, 4]], eye_intrinsics(1, 3)).reference_view("medoid")
    assert int(cameras.reference_view("medoid")[1]) == [1, 2, 4][int(alone)]


def test_medoid_is_closest_to_the_others() -> None:
    poses = torch.eye(4, dtype=torch.float64).repeat(1, 5, 1, 1)
    poses[0, :, 0, 3] = torch.tensor([0.0, 9.0, 1.0, 1.5, 4.0])
    cameras = Cameras(poses, eye_intrinsics(1, 5))
    assert cameras.reference_view("medoid").tolist() == [3]
    assert Cameras(other_unit(poses, 1e3), eye_intrinsics(1, 5)).reference_view("medoid").tolist() == [3]
    rotating = torch.eye(4, dtype=torch.float64).repeat(1, 3, 1, 1)  # a camera that rotates in place
    rotating[0, :, :3, :3] = torch.stack([rotation(torch.tensor([0.0, 1.0, 0.0]), angle) for angle in (3.0, 0.2, 1.5)])
    assert Cameras(rotating, eye_intrinsics(1, 3)).reference_view("medoid").tolist() == [2]


def test_balanced_reference_view_is_the_given_one() -> None:
    poses, chosen = random_poses(2, 3), torch.tensor([2, 1])
    cameras = Cameras(poses, eye_intrinsics(2, 3)).with_reference(chosen)
    given, passed = cameras.canonical("saddle_balanced"), cameras.canonical(chosen)
    assert torch.equal(given.world_to_camera, passed.world_to_camera)
    assert torch.equal(given.world_to_camera[0, 2], torch.eye(4, dtype=torch.float64))
    assert cameras[[1]].reference_view("saddle_balanced").tolist() == [1]
    with pytest.raises(ValueError, match="pass balanced_views to with_reference"):
        Cameras(poses, eye_intrinsics(2, 3)).canonical("saddle_balanced")


def other_unit(poses: Tensor, factor: float) -> Tensor:
    poses = poses.clone()
    poses[..., :3, 3] *= factor
    return poses


@pytest.mark.parametrize("scale", ["mean", "max", "rms", "median_depth"])
def test_every_scale_makes_the_unit_cancel(scale: Any) -> None:
    poses, depth = random_poses(2, 5), torch.tensor([2.0, 3.0], dtype=torch.float64)
    meters = Cameras(poses, eye_intrinsics(2, 5)).with_median_depth(depth)
    feet = Cameras(other_unit(poses, 3.28), eye_intrinsics(2, 5)).with_median_depth(3.28 * depth)
    scaled = meters.scaled(scale)
    torch.testing.assert_close(scaled.world_to_camera, feet.scaled(scale).world_to_camera, rtol=0, atol=1e-12)
    assert not torch.allclose(scaled.world_to_camera, poses, atol=1e-2)
    assert torch.equal(meters.scaled("none").world_to_camera, poses)
    assert torch.equal(meters.world_to_camera, poses)  # the given cameras are not modified


def test_scales_are_computed_from_used_centers() -> None:
    poses = torch.eye(4, dtype=torch.float64).repeat(1, 4, 1, 1)
    poses[0, :, 0, 3] = torch.tensor([1.0, -1.0, 3.0, 1000.0])  # centers -1, 1, -3; their mean is -1
    cameras = Cameras(poses, eye_intrinsics(1, 4), torch.tensor([[0, 1, 2, 2, -1]]))
    for scale, unit in (("mean", 4 / 3), ("max", 2.0), ("rms", (8 / 3) ** 0.5)):
        torch.testing.assert_close(cameras.scaled(scale).world_to_camera, other_unit(poses, 1 / unit))
    with pytest.raises(ValueError, match="median depth: call with_median_depth"):
        cameras.scaled("median_depth")


@pytest.mark.parametrize("scale", ["mean", "max", "rms"])
def test_static_camera_has_a_minimal_scale(scale: Any) -> None:
    poses = random_poses(1, 1).expand(1, 4, 4, 4).clone()
    poses[0, :, :3, 3] += 1e-6 * torch.randn(4, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    scaled = Cameras(poses, eye_intrinsics(1, 4)).canonical().scaled(scale).world_to_camera
    assert scaled.isfinite().all() and scaled[..., :3, 3].abs().max() < 1e-3


def test_normalized_intrinsics_are_independent_of_resolution() -> None:
    K = torch.tensor([[500.0, 3.0, 310.0], [0.0, 510.0, 250.0], [0.0, 0.0, 1.0]])
    normalized = normalize_intrinsics(K, 640, 480)
    expected = torch.tensor([[500 / 640, 0, 310 / 640 - 0.5], [0, 510 / 480, 250 / 480 - 0.5], [0, 0, 1.0]])
    torch.testing.assert_close(normalized, expected)
    torch.testing.assert_close(intrinsics_in_pixels(normalized, 640, 480), K * (K != 3.0))  # the skew is dropped
    half = K * torch.tensor([0.5, 0.5, 1.0])[:, None]
    torch.testing.assert_close(normalize_intrinsics(half, 320, 240), normalized)
    with pytest.raises(ValueError, match="must be positive, got 0 x 480"):
        normalize_intrinsics(K, 0, 480)


def posed(count: int = 3) -> Tensor:
    poses = torch.eye(4, dtype=torch.float64).repeat(1, count, 1, 1)
    poses[0, :, 0, 3] = torch.arange(count, dtype=torch.float64)
    return poses.requires_grad_()


@pytest.mark.parametrize("change", ["canonical", "scaled"])
def test_unknown_points_leave_the_gradient_of_poses_finite(change: str) -> None:
    """Text has NaN points; a trained encoder's cameras must not get NaN gradients by them."""
    poses = posed()
    index = torch.tensor([[-1, 0, 1, 2]])
    cameras = Cameras.trusted(poses, torch.eye(3, dtype=torch.float64).expand(1, 3, 3, 3), index)
    points = torch.ones(1, 4, 3, dtype=torch.float64)
    points[0, 0] = torch.nan
    located = cameras.with_tokens(points=points)
    changed = located.canonical("middle") if change == "canonical" else located.scaled("rms")
    assert changed.points is not None and changed.points.isnan().any(-1).tolist() == [[True, False, False, False]]
    changed.points.nan_to_num(0.0).sum().backward()
    assert poses.grad is not None and poses.grad.isfinite().all() and poses.grad.any()


def test_coinciding_centers_leave_the_gradient_of_their_scale_finite() -> None:
    poses = torch.eye(4, dtype=torch.float64).repeat(1, 2, 1, 1).requires_grad_()
    Cameras.trusted(poses, torch.eye(3).expand(1, 2, 3, 3)).scaled("rms").world_to_camera.sum().backward()
    assert poses.grad is not None and poses.grad.isfinite().all()


# ---- the camera of merged frames -------------------------------------------------------------------------------------


def merged_one_by_one(
    scene: SceneGeometry, quaternions: Tensor, merged: str
) -> tuple[list[Tensor], list[Tensor], list[bool]]:
    """Merge patch by patch, with the midpoint of rotations from the sum of their quaternions: the slow reference."""
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
    """Frames have cameras at random; some scenes have none."""
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
        poses = random_poses(count, seed=seed)
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


# ---- a window of pictures --------------------------------------------------------------------------------------------


WINDOW = Window(height=20, width=30, top=4, left=0, rows=12, columns=28)


def whole() -> SceneGeometry:
    """Return the geometry of pictures of 20 x 30 pixels."""
    K_px = torch.tensor([[[40.0, 0.0, 14.0], [0.0, 50.0, 9.0], [0.0, 0.0, 1.0]]], dtype=torch.float64)
    depth = 1 + torch.arange(600.0).view(1, 20, 30)
    poses = torch.eye(4, dtype=torch.float64)[None]
    return SceneGeometry(world_to_camera=poses, K_normalized=normalize_intrinsics(K_px, 30, 20), depth=depth)


def test_a_part_keeps_its_pixels_and_their_rays() -> None:
    before, after = whole(), WINDOW.crop(whole())
    assert before.depth is not None and after.depth is not None and after.K_normalized is not None
    assert torch.equal(after.depth, before.depth[:, 4:16, :28])
    expected = torch.tensor([[[40.0, 0.0, 14.0], [0.0, 50.0, 5.0], [0.0, 0.0, 1.0]]], dtype=torch.float64)
    torch.testing.assert_close(intrinsics_in_pixels(after.K_normalized, 28, 12), expected)


def test_the_inverse_restores_what_is_known() -> None:
    before, after = whole(), WINDOW.inverse.crop(WINDOW.crop(whole()))
    assert before.depth is not None and after.depth is not None
    torch.testing.assert_close(after.K_normalized, before.K_normalized)
    known = torch.zeros_like(before.depth)
    known[:, 4:16, :28] = 1
    assert torch.equal(after.depth, before.depth * known)


def test_the_inverse_in_another_size() -> None:
    """At half the size each pixel is one of the four in its place, and pixels outside the window are unknown."""
    before, after = whole(), WINDOW.inverse.crop(WINDOW.crop(whole()), (10, 15))
    assert before.depth is not None and after.depth is not None
    of_four = before.depth.unflatten(2, (15, 2)).unflatten(1, (10, 2))
    same = (of_four == after.depth[:, :, None, :, None]).any(4).any(2)
    inside = torch.zeros(1, 10, 15, dtype=torch.bool)
    inside[:, 2:8, :14] = True
    assert torch.equal(same, inside) and bool((after.depth[~inside] == 0).all())


# ---- rays ------------------------------------------------------------------------------------------------------------


def test_directions_invert_the_projection() -> None:
    K = random_cameras(1)[1][0, 0]
    K_px = K.clone()
    K_px[0] *= 640
    K_px[1] *= 480
    K_px[0, 2], K_px[1, 2] = (K[0, 2] + 0.5) * 640, (K[1, 2] + 0.5) * 480
    centers = torch.tensor([[-0.5, -0.5], [0.0, 0.0], [0.31, -0.12]], dtype=torch.float64)
    directions = ray_directions(K.expand(3, 3, 3), centers)
    pixels, _ = project_points(7.0 * directions, torch.eye(4, dtype=torch.float64), K_px)
    expected = (centers + 0.5) * torch.tensor([640.0, 480.0], dtype=torch.float64)
    torch.testing.assert_close(pixels, expected, rtol=0, atol=1e-10)


def test_token_points_lie_on_their_rays_at_median_depth() -> None:
    poses, K = random_cameras(1, views=2)
    torch.manual_seed(0)
    depth = torch.full((2, 56, 84), 3.0)
    depth[1, :28, 28:56] = 0.0  # a token without depth
    depth[0, :28, :28] = torch.where(torch.rand(28, 28) < 0.4, 9.0, 2.0)
    depth[0, 28:, 28:56] = torch.where(torch.rand(28, 28) < 0.7, 0.0, 5.0)
    points = token_points(depth, poses[0], K[0], 28)
    assert points.shape == (2, 2, 3, 3) and points[1, 0, 1].isnan().all()
    assert points.isfinite().all(-1).sum() == 11
    for step, row, column, expected in ((0, 0, 0, 2.0), (0, 1, 1, 5.0), (1, 1, 2, 3.0)):
        in_camera = poses[0, step, :3, :3] @ points[step, row, column] + poses[0, step, :3, 3]
        center = torch.tensor([(column + 0.5) / 3, (row + 0.5) / 2], dtype=torch.float64) - 0.5
        torch.testing.assert_close(in_camera, expected * ray_directions(K[0, step], center), rtol=0, atol=1e-12)


def test_points_of_a_pair_are_those_of_its_first_frame() -> None:
    (poses,), (K,) = random_cameras(1, views=4)
    depth = torch.arange(1.0, 5.0)[:, None, None].expand(4, 28, 28)
    points = scene_points(SceneGeometry(world_to_camera=poses, K_normalized=K, depth=depth), 1)
    torch.testing.assert_close(points, token_points(depth[[0, 2]], poses[[0, 2]], K[[0, 2]], 28))
    assert not torch.allclose(points, token_points(depth[[1, 3]], poses[[1, 3]], K[[1, 3]], 28), atol=0.1)


# ---- powers ----------------------------------------------------------------------------------------------------------


def test_powers_lead_from_identities_to_the_cameras() -> None:
    cameras = Cameras(*random_cameras(2, 4), torch.tensor([[0, 1, 2, 3, -1]] * 2)).canonical()
    zero, half, one = torch.tensor(0.0), torch.tensor(0.5), torch.tensor(1.0)
    start, end, middle = (cameras.powers(a, a, a) for a in (zero, one, half))
    assert torch.equal(start.world_to_camera, torch.eye(4, dtype=torch.float64).expand(2, 4, 4, 4))
    assert torch.equal(start.K_normalized, eye_intrinsics(2, 4))
    torch.testing.assert_close(end.world_to_camera, cameras.world_to_camera, rtol=0, atol=1e-14)
    torch.testing.assert_close(end.K_normalized, cameras.K_normalized, rtol=0, atol=1e-14)
    for given, part in ((middle.world_to_camera[..., :3, :3], cameras.world_to_camera[..., :3, :3]),
                        (middle.K_normalized, cameras.K_normalized)):  # fmt: skip
        torch.testing.assert_close(given @ given, part, rtol=0, atol=1e-13)
        assert (given - part).abs().max() > 1e-2  # the control
    assert torch.equal(middle.world_to_camera[..., :3, 3], cameras.world_to_camera[..., :3, 3] / 2)
    # each part has an exponent of its own, and each sample may have one
    mixed = cameras.powers(torch.tensor([[1.0], [0.0]]), zero, one)
    torch.testing.assert_close(mixed.world_to_camera[0, :, :3, :3], cameras.world_to_camera[0, :, :3, :3])
    assert torch.equal(mixed.world_to_camera[1], start.world_to_camera[1])
    assert not mixed.world_to_camera[..., :3, 3].any()
    assert mixed.index is cameras.index


@pytest.mark.parametrize("is_used", [False, True])
def test_the_values_of_unused_cameras_do_not_reach_the_gradient(is_used: bool) -> None:
    """With tokens that have the invalid camera, the control, they do."""
    poses, K = random_cameras(1, 2)
    poses[:, 1], K[:, 1] = torch.nan, torch.nan
    exponent = torch.tensor(0.3, requires_grad=True)
    powers = Cameras.trusted(poses, K, torch.tensor([[0, int(is_used)]])).powers(exponent, exponent, exponent)
    (powers.world_to_camera.sum() + powers.K_normalized.sum()).backward()
    assert exponent.grad is not None and exponent.grad.isfinite() == (not is_used)
