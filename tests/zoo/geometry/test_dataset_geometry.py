"""Tokens of the dataset's cameras and depth: a slow reference, invariances, and errors."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from tests.poses import random_poses
from tests.zoo.geometry.projection import project_points
from zoo.cameras import Cameras
from zoo.cameras.poses import invert_se3
from zoo.errors import InputError
from zoo.geometry import DatasetGeometry, SceneGeometry

HEIGHT, WIDTH = 28, 42
K = torch.tensor([[0.7, 0, 0.05], [0, 0.9, -0.1], [0, 0, 1]], dtype=torch.float64)
K_PX = torch.tensor([[0.7 * 42, 0, 0.55 * 42], [0, 0.9 * 28, 0.4 * 28], [0, 0, 1]], dtype=torch.float64)
FRAMES = torch.zeros(3, 3, HEIGHT, WIDTH, dtype=torch.float64)


def scene(poses: Tensor, depth: Tensor | None = None, has_camera: Tensor | None = None) -> SceneGeometry:
    return SceneGeometry(
        world_to_camera=poses, K_normalized=K.expand(len(poses), 3, 3), depth=depth, has_camera=has_camera
    )


def encode(given: SceneGeometry | None, **options: Any) -> SceneGeometry:
    return DatasetGeometry(**options)([FRAMES], [given])[0]


def some_depth(seed: int = 0) -> Tensor:
    return 1 + torch.rand(3, HEIGHT, WIDTH, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


# ---- tokens ----------------------------------------------------------------------------------


def test_every_channel_against_a_slow_reference() -> None:
    poses, depth = random_poses(3), some_depth()
    depth[1, :14, 14:28] = 0  # patch (0, 1) of frame 1 has none
    depth[2, 3, 5] = 0
    found = encode(scene(poses, depth))
    assert found.patches.shape == (3, 2, 3, 10) and found.camera_tokens.shape == (3, 10)
    for s in range(3):
        camera_to_first = poses[0] @ torch.linalg.inv(poses[s])
        center = camera_to_first[:3, 3]
        for row in range(2):
            for column in range(3):
                pixel = torch.tensor([14 * column + 7, 14 * row + 7, 1], dtype=torch.float64)
                ray = camera_to_first[:3, :3] @ torch.linalg.inv(K_PX) @ pixel
                unit = ray / ray.norm()
                block = depth[s, 14 * row : 14 * row + 14, 14 * column : 14 * column + 14].flatten()
                block = block[block > 0].sort().values
                where = torch.zeros(4, dtype=torch.float64)
                if len(block):
                    where = torch.cat((center + block[(len(block) - 1) // 2] * ray, torch.ones(1).double()))
                expected = torch.cat((unit, torch.linalg.cross(center, unit), where))
                assert torch.allclose(found.patches[s, row, column], expected, atol=1e-9), (s, row, column)
        axis = camera_to_first[:3, 2]
        expected = torch.cat((axis, torch.linalg.cross(center, axis), center, torch.ones(1).double()))
        assert torch.allclose(found.camera_tokens[s], expected, atol=1e-9)
    assert not found.patches[1, 0, 1, 6:].any() and found.patches[1, 0, 1, :6].any()


def test_points_project_to_the_centers_of_their_patches() -> None:
    found = encode(scene(random_poses(3), some_depth()))
    points = found.patches[..., 6:9].flatten(1, 2)
    pixels, in_camera = project_points(points, found.world_to_camera, K_PX)
    centers = torch.tensor([[14 * c + 7, 14 * r + 7] for r in range(2) for c in range(3)], dtype=torch.float64)
    assert torch.allclose(pixels, centers.expand(3, 6, 2), atol=1e-9) and (in_camera[..., 2] > 1).all()
    wrong, _ = project_points(points, invert_se3(found.world_to_camera), K_PX)
    assert not torch.allclose(wrong[1:], centers.expand(2, 6, 2), atol=1.0)


def test_rays_of_one_camera_intersect() -> None:
    """Lines (d1, m1) and (d2, m2) intersect if d1 m2 + d2 m1 = 0; those of two cameras here do not."""
    rays = encode(scene(random_poses(3))).patches[..., :6].flatten(1, 2)
    d, m = rays[..., :3], rays[..., 3:]
    assert (d[1] @ m[1].T + m[1] @ d[1].T).abs().max() < 1e-9
    assert (d[1] @ m[2].T + m[1] @ d[2].T).abs().min() > 1e-3
    assert torch.allclose(d.norm(dim=-1), torch.ones(3, 6, dtype=torch.float64))


# ---- the world --------------------------------------------------------------------------------------------


def test_tokens_are_invariant_to_the_world_frame() -> None:
    poses, depth = random_poses(3), some_depth()
    (move,) = random_poses(1, seed=5)
    first, other = encode(scene(poses, depth)), encode(scene(poses @ move, depth))
    for name in ("patches", "camera_tokens", "world_to_camera"):
        assert torch.allclose(getattr(first, name), getattr(other, name), atol=1e-9), name
    assert torch.equal(first.world_to_camera[0], torch.eye(4, dtype=torch.float64))
    expected = Cameras(poses[None], K.expand(1, 3, 3, 3)).canonical("first").world_to_camera[0]
    assert torch.allclose(first.world_to_camera, expected, atol=1e-12)
    scaled = poses.clone()
    scaled[:, :3, 3] *= 2
    assert not torch.allclose(encode(scene(scaled)).patches, encode(scene(poses)).patches, atol=1e-2)  # meters do


def test_a_distant_origin_costs_no_precision() -> None:
    near = random_poses(3)
    far = torch.eye(4, dtype=torch.float64)
    far[:3, 3] = torch.tensor([1e5, -2e5, 3e4])
    a, b = encode(scene(near)), encode(scene(near @ far))
    assert torch.allclose(a.patches, b.patches, atol=1e-8)
    single = (near @ far).float()
    naive = single @ torch.linalg.inv(single[0])  # composed in float32
    assert (naive.double() - a.world_to_camera).abs().max() > 1e-3


def test_frames_without_a_camera_have_zero_tokens() -> None:
    poses, has_camera = random_poses(3), torch.tensor([False, True, True])
    found = encode(scene(poses, some_depth(), has_camera))
    assert not found.patches[0].any() and not found.camera_tokens[0].any()
    identity = torch.eye(4, dtype=torch.float64)
    assert torch.equal(found.world_to_camera[0], identity) and torch.equal(found.world_to_camera[1], identity)
    alone = DatasetGeometry()([FRAMES[1:]], [scene(poses[1:], some_depth()[1:])])[0]
    assert torch.equal(found.patches[1:], alone.patches) and torch.equal(found.has_camera, has_camera)


# ---- options, precision, scenes ---------------------------------------------------------------------------


def test_without_depth() -> None:
    poses = random_poses(3)
    rays = encode(scene(poses, some_depth()), depth=False)
    assert (
        DatasetGeometry(depth=False).width == 6 == rays.patches.shape[-1]
        and not DatasetGeometry(depth=False).requires_depth
    )
    assert torch.equal(rays.patches, encode(scene(poses, some_depth())).patches[..., :6])
    unknown = encode(scene(poses))  # depth is wanted, but this scene has none
    assert DatasetGeometry().width == 10 == unknown.patches.shape[-1] and not unknown.patches[..., 6:].any()


@pytest.mark.parametrize("present", [None, torch.tensor([False, True, True])])
def test_the_unit_scene_makes_tokens_scale_invariant(present: Tensor | None) -> None:
    poses, depth = random_poses(3), some_depth()
    larger = poses.clone()
    larger[:, :3, 3] *= 7
    one, other = scene(poses, depth, present), scene(larger, 7 * depth, present)
    found, scaled = encode(one, unit="scene"), encode(other, unit="scene")
    assert (found.patches - scaled.patches).abs().max() < 1e-12
    assert (found.camera_tokens - scaled.camera_tokens).abs().max() < 1e-12
    points = found.patches[..., 6:9][found.patches[..., 9] == 1]
    assert abs(points.norm(dim=-1).mean() - 1) < 1e-12
    # cameras are metric still, and so are the tokens where nothing else is asked for
    assert torch.equal(scaled.world_to_camera, encode(other).world_to_camera)
    assert (encode(one).patches - encode(other).patches).abs().max() > 1


def test_the_unit_scene_requires_depth() -> None:
    with pytest.raises(InputError, match="scene 0 of the batch has no depth, which --model.geometry.unit"):
        encode(scene(random_poses(3)), unit="scene")
    with pytest.raises(InputError, match="set --model.geometry.depth true"):
        DatasetGeometry(depth=False, unit="scene")


def test_precision_follows_the_frames_and_autocast_is_ignored() -> None:
    given = SceneGeometry(world_to_camera=random_poses(3).float(), K_normalized=K.float().expand(3, 3, 3))
    exact = encode(given)
    assert exact.patches.dtype == torch.float64 and exact.world_to_camera.dtype == torch.float32
    with torch.autocast("cpu", torch.bfloat16):
        (half,) = DatasetGeometry()([FRAMES.bfloat16()], [given])
    assert half.patches.dtype == torch.float32 and torch.allclose(half.patches.double(), exact.patches, atol=1e-6)


def test_scenes_of_different_lengths_and_sizes() -> None:
    encoder = DatasetGeometry()
    frames = [FRAMES, torch.zeros(1, 3, 14, 28), torch.zeros(100, 3, 28, 28)]
    given = [scene(random_poses(len(each), seed=i)) for i, each in enumerate(frames)]
    found = encoder(frames, given)
    assert [tuple(each.patches.shape) for each in found] == [(3, 2, 3, 10), (1, 1, 2, 10), (100, 2, 2, 10)]
    assert encoder(frames, given, tokens=False)[0].patches is None
    assert not list(encoder.parameters())


@pytest.mark.parametrize(
    "given",
    [None, SceneGeometry(), scene(random_poses(3), has_camera=torch.zeros(3).bool()).without_invalid_cameras()],
)
def test_scenes_without_cameras_are_refused(given: SceneGeometry | None) -> None:
    with pytest.raises(InputError, match="^scene 1 of the batch has no cameras: put .*cameras.json.*predicts them"):
        DatasetGeometry()([FRAMES, FRAMES], [scene(random_poses(3)), given])


def test_bad_shapes_are_errors() -> None:
    with pytest.raises(InputError, match="frames of 42 x 30 pixels"):
        DatasetGeometry()([torch.zeros(3, 3, 30, 42)], [scene(random_poses(3))])
    with pytest.raises(ValueError, match="2 cameras for 3 frames"):
        encode(scene(random_poses(2)))
