"""Pose encodings and projection: golden cases, inverses, and conventions."""

from __future__ import annotations

import json
import math

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from tests.zoo.geometry.official import GOLDEN
from tests.zoo.geometry.projection import project_points
from zoo.cameras import Cameras
from zoo.cameras.poses import invert_se3, nearest_rotation
from zoo.geometry import cameras_to_pose_encoding, pose_encoding_to_cameras, unproject_depth
from zoo.geometry.layers import quaternion_to_rotation, rotation_to_quaternion

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


# ---- golden -----------------------------------------------------------------------------------------------


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
    world = unproject_depth(t["depth"], pose, K_px)
    assert world.dtype == torch.float32 and torch.allclose(world.double(), t["world_points"], atol=2e-6, rtol=0)
    wide = unproject_depth(t["depth"].double(), pose.double(), K_px.double())
    assert wide.dtype == torch.float64 and torch.allclose(wide, t["world_points"], atol=5e-7, rtol=0)
    identity = torch.eye(4).expand(len(pose), 4, 4)
    assert close(unproject_depth(t["depth"], identity, K_px), t["cam_points"])
    assert not torch.allclose(
        unproject_depth(t["depth"], invert_se3(pose), K_px).double(), t["world_points"], atol=1e-2
    )


def test_projection_and_inverse(case: tuple) -> None:
    _, t = case
    pose = square(t["depth_extrinsics"])
    pixels, in_camera = project_points(t["proj_points"], pose, t["intrinsics"][0])
    assert close(pixels, t["proj_pixels"]) and close(in_camera.mT, t["proj_cam"])
    assert close(invert_se3(pose), t["extrinsics_inverse"])


# ---- properties -------------------------------------------------------------------------------------------


def test_projection_inverts_unprojection(case: tuple) -> None:
    _, t = case
    pose, K_px = square(t["depth_extrinsics"]).double(), t["depth_intrinsics"].double()
    pose[:, :3, :3] = nearest_rotation(pose[:, :3, :3])  # a float32 rotation has no exact inverse in R^T
    depth = t["depth"].double() + 0.5
    world = unproject_depth(depth, pose, K_px)
    pixels, in_camera = project_points(world.flatten(1, 2), pose, K_px)
    height, width = depth.shape[1:3]
    v, u = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    assert torch.allclose(pixels, torch.stack((u, v), -1).flatten(0, 1).double().expand_as(pixels), atol=1e-9)
    assert torch.allclose(in_camera[..., 2:], depth.flatten(1, 2), atol=1e-12)


def test_rotations_ignore_a_quaternions_length_and_sign() -> None:
    quaternion = torch.randn(20, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    R = quaternion_to_rotation(quaternion)
    assert torch.allclose(R @ R.mT, torch.eye(3, dtype=R.dtype).expand_as(R), atol=1e-12)
    assert torch.allclose(torch.linalg.det(R), torch.ones(20, dtype=R.dtype))
    assert torch.allclose(R, quaternion_to_rotation(-3 * quaternion), atol=1e-12)
    back = rotation_to_quaternion(R)
    assert (back[:, 3] >= 0).all()
    assert torch.allclose(quaternion_to_rotation(back), R, atol=1e-12)


def test_a_quarter_turn() -> None:
    """About z, by the right-hand rule: x goes to y."""
    half = math.sqrt(0.5)
    R = quaternion_to_rotation(torch.tensor([0.0, 0.0, half, half]))
    assert torch.allclose(R @ torch.tensor([1.0, 0, 0]), torch.tensor([0.0, 1, 0]), atol=1e-6)


def test_a_field_of_view_of_zero_is_an_infinite_focal_length() -> None:
    encoding = torch.tensor([0, 0, 0, 0, 0, 0, 1, 0, 1.0])
    pose, K_px = pose_encoding_to_cameras(encoding, (28, 42))
    assert K_px[1, 1] == math.inf and K_px[0, 0].isfinite()
    assert cameras_to_pose_encoding(pose, K_px, (28, 42))[7] == 0
    with pytest.raises(ValueError, match="infinite"):
        Cameras(pose[None, None], K_px[None, None])


def test_autocast_does_not_change_geometry(case: tuple) -> None:
    size, t = case
    pose, K_px = square(t["depth_extrinsics"]), t["depth_intrinsics"]
    with torch.autocast("cpu", torch.bfloat16):
        world = unproject_depth(t["depth"], pose, K_px)
        pixels, _ = project_points(t["proj_points"], pose, t["intrinsics"][0])
        cameras, _ = pose_encoding_to_cameras(t["pose_encoding"], size)
    assert torch.allclose(world.double(), t["world_points"], atol=2e-6, rtol=0)
    assert close(pixels, t["proj_pixels"]) and close(cameras, square(t["extrinsics"]))
