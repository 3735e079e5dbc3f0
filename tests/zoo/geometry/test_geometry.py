"""Pose encodings, unprojection, and tokens of the dataset's cameras and depth."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from tests.poses import random_poses
from tests.zoo.geometry.official import GOLDEN
from tests.zoo.geometry.projection import project_points
from zoo.cameras import Cameras
from zoo.cameras.poses import invert_se3, nearest_rotation, quaternion_to_rotation, rotation_to_quaternion
from zoo.errors import InputError
from zoo.geometry import (
    DatasetGeometry,
    SceneGeometry,
    cameras_to_pose_encoding,
    pose_encoding_to_cameras,
    unproject_depth,
)

CASES = sorted(path.stem for path in (GOLDEN / "vggt_geometry").glob("*.safetensors"))
RTOL, ATOL = 1e-6, 1e-6


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest) -> tuple[tuple[int, int], dict[str, Tensor]]:
    folder = GOLDEN / "vggt_geometry"
    size = json.loads((folder / f"{request.param}.json").read_text())["image_size_hw"]
    return tuple(size), load_file(folder / f"{request.param}.safetensors")


def square(extrinsics: Tensor) -> Tensor:
    """[R|t] with its fourth row."""
    row = extrinsics.new_tensor([0, 0, 0, 1]).expand(*extrinsics.shape[:-2], 1, 4)
    return torch.cat((extrinsics, row), -2)


def close(a: Tensor, b: Tensor) -> bool:
    return torch.allclose(a, b, rtol=RTOL, atol=ATOL)


def test_pose_encoding(case: tuple) -> None:
    size, t = case
    world_to_camera, K_px = pose_encoding_to_cameras(t["pose_encoding"], size)
    assert close(world_to_camera, square(t["extrinsics"])) and close(K_px, t["intrinsics"])
    assert close(cameras_to_pose_encoding(world_to_camera, K_px, size), t["pose_encoding_roundtrip"])
    assert not close(pose_encoding_to_cameras(t["pose_encoding"], size[::-1])[1], t["intrinsics"])
    assert not close(invert_se3(world_to_camera), square(t["extrinsics"]))  # they are not camera-to-world


def test_quaternions(case: tuple) -> None:
    _, t = case
    assert close(quaternion_to_rotation(t["quats_in"]), t["rotmats"][4:])
    assert close(rotation_to_quaternion(t["rotmats"]), t["quats_out"])
    assert (t["quats_in"].norm(dim=-1) - 1).abs().max() > 0.1  # lengths other than 1 are in the case
    assert not close(quaternion_to_rotation(t["quats_in"].roll(1, -1)), t["rotmats"][4:])  # w isn't first


def test_unprojection(case: tuple) -> None:
    _, t = case
    pose, K_px = square(t["depth_extrinsics"]), t["depth_intrinsics"]
    assert close(invert_se3(square(t["depth_extrinsics"])), t["extrinsics_inverse"])
    world = unproject_depth(t["depth"], pose, K_px)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(unproject_depth(t["depth"], pose, K_px), world)
    assert world.dtype == torch.float32 and torch.allclose(world.double(), t["world_points"], atol=2e-6, rtol=0)
    wide = unproject_depth(t["depth"].double(), pose.double(), K_px.double())
    assert wide.dtype == torch.float64 and torch.allclose(wide, t["world_points"], atol=5e-7, rtol=0)
    identity = torch.eye(4).expand(len(pose), 4, 4)
    assert close(unproject_depth(t["depth"], identity, K_px), t["cam_points"])
    wrong = unproject_depth(t["depth"], invert_se3(pose), K_px)
    assert not torch.allclose(wrong.double(), t["world_points"], atol=1e-2)  # the control


def test_projection_inverts_unprojection(case: tuple) -> None:
    """The projection is a helper of several tests; its numbers are golden too."""
    _, t = case
    pose, K_px = square(t["depth_extrinsics"]).double(), t["depth_intrinsics"].double()
    pixels, in_camera = project_points(t["proj_points"], square(t["depth_extrinsics"]), t["intrinsics"][0])
    assert close(pixels, t["proj_pixels"]) and close(in_camera.mT, t["proj_cam"])
    pose[:, :3, :3] = nearest_rotation(pose[:, :3, :3])  # a float32 rotation has no exact inverse in R^T
    depth = t["depth"].double() + 0.5
    pixels, in_camera = project_points(unproject_depth(depth, pose, K_px).flatten(1, 2), pose, K_px)
    v, u = torch.meshgrid(*map(torch.arange, depth.shape[1:3]), indexing="ij")
    assert torch.allclose(pixels, torch.stack((u, v), -1).flatten(0, 1).double().expand_as(pixels), atol=1e-9)
    assert torch.allclose(in_camera[..., 2:], depth.flatten(1, 2), atol=1e-12)


def test_a_field_of_view_of_zero_is_an_infinite_focal_length() -> None:
    encoding = torch.tensor([0, 0, 0, 0, 0, 0, 1, 0, 1.0])
    pose, K_px = pose_encoding_to_cameras(encoding, (28, 42))
    assert K_px[1, 1] == math.inf and K_px[0, 0].isfinite()
    assert cameras_to_pose_encoding(pose, K_px, (28, 42))[7] == 0
    with pytest.raises(ValueError, match="infinite"):
        Cameras(pose[None, None], K_px[None, None])


# ---- tokens of the dataset's cameras and depth -----------------------------------------------------------------

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


def test_precision_follows_the_frames_and_autocast_is_ignored() -> None:
    given = SceneGeometry(world_to_camera=random_poses(3).float(), K_normalized=K.float().expand(3, 3, 3))
    exact = encode(given)
    assert exact.patches.dtype == torch.float64 and exact.world_to_camera.dtype == torch.float32
    with torch.autocast("cpu", torch.bfloat16):
        (half,) = DatasetGeometry()([FRAMES.bfloat16()], [given])
    assert half.patches.dtype == torch.float32 and torch.allclose(half.patches.double(), exact.patches, atol=1e-6)


def test_scenes_without_cameras_or_depth_are_refused() -> None:
    none = scene(random_poses(3), has_camera=torch.zeros(3).bool()).without_invalid_cameras()
    for given in (None, SceneGeometry(), none):
        with pytest.raises(InputError, match="^scene 1 of the batch has no cameras"):
            DatasetGeometry()([FRAMES, FRAMES], [scene(random_poses(3)), given])
    with pytest.raises(InputError, match="scene 0 of the batch has no depth, which --model.geometry.unit"):
        encode(scene(random_poses(3)), unit="scene")
    with pytest.raises(InputError, match="set --model.geometry.depth true"):
        DatasetGeometry(depth=False, unit="scene")
    with pytest.raises(ValueError, match="2 cameras for 3 frames"):
        encode(scene(random_poses(2)))
