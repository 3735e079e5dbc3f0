"""cameras.json: numbers come back exactly, and what is wrong is named."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path

import pytest
import torch

from datamodules.cameras_file import read_cameras, write_cameras
from datamodules.video import Video
from zoo.cameras.poses import invert_se3

N, HEIGHT, WIDTH = 5, 48, 64
K_PX = torch.tensor([[60.0, 0.0, 30.0], [0.0, 58.0, 25.0], [0.0, 0.0, 1.0]], dtype=torch.float64)


def poses(seed: int = 0) -> torch.Tensor:
    """Random rigid world-to-camera poses, (N, 4, 4) float64."""
    generator = torch.Generator().manual_seed(seed)
    rotations, _ = torch.linalg.qr(torch.randn(N, 3, 3, generator=generator, dtype=torch.float64))
    rotations[torch.linalg.det(rotations) < 0] *= -1
    matrices = torch.eye(4, dtype=torch.float64).repeat(N, 1, 1)
    matrices[:, :3, :3] = rotations
    matrices[:, :3, 3] = torch.randn(N, 3, generator=generator, dtype=torch.float64)
    return matrices


def read(path: Path) -> tuple[torch.Tensor, torch.Tensor]:
    return read_cameras(path, N, HEIGHT, WIDTH)


def write(path: Path, **changes) -> Path:
    """A valid file, with some entries changed."""
    write_cameras(path, poses(), K_PX, width=WIDTH, height=HEIGHT)
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    return path


def test_round_trip(tmp_path):
    path = tmp_path / "a.cameras.json"
    per_frame = K_PX.repeat(N, 1, 1)
    per_frame[:, 0, 0] += torch.arange(N)
    write_cameras(path, poses(), per_frame, width=WIDTH, height=HEIGHT, times_s=[i / 30 for i in range(N)])
    world_to_camera, K = read(path)
    assert world_to_camera.dtype == K.dtype == torch.float64
    assert torch.equal(world_to_camera[:, :3, 3], poses()[:, :3, 3])
    assert torch.allclose(world_to_camera, poses(), atol=1e-14)
    assert torch.allclose(K[:, 0, 0], per_frame[:, 0, 0] / WIDTH)
    assert json.loads(path.read_text())["times_s"][1] == 1 / 30


def test_one_K_serves_all_frames_and_is_normalized(tmp_path):
    _, K = read(write(tmp_path / "a.cameras.json"))
    expected = torch.tensor([[60 / 64, 0, 30 / 64 - 0.5], [0, 58 / 48, 25 / 48 - 0.5], [0, 0, 1]], dtype=torch.float64)
    assert K.shape == (N, 3, 3) and torch.equal(K, expected.expand(N, 3, 3))


def test_rotations_are_projected(tmp_path):
    noisy = poses()
    noisy[:, :3, :3] += 4e-4 * torch.randn(N, 3, 3, generator=torch.Generator().manual_seed(1))
    world_to_camera, _ = read(write(tmp_path / "a.cameras.json", world_to_camera=noisy.tolist()))
    gram = world_to_camera[:, :3, :3].mT @ world_to_camera[:, :3, :3]
    assert torch.allclose(gram, torch.eye(3, dtype=torch.float64).expand(N, 3, 3), atol=1e-12)
    assert not torch.allclose(noisy[:, :3, :3].mT @ noisy[:, :3, :3], gram, atol=1e-5)  # negative control


MIRROR = torch.diag(torch.tensor([1.0, 1.0, -1.0, 1.0])).repeat(N, 1, 1)


def changed(frame: int, row: int, column: int, value: float) -> list:
    matrices = poses().tolist()
    matrices[frame][row][column] = value
    return matrices


BAD = {
    "nan": ({"world_to_camera": changed(3, 0, 3, math.nan)}, "frame 3: world_to_camera holds NaN"),
    "infinite": ({"world_to_camera": changed(2, 1, 1, math.inf)}, "frame 2: world_to_camera holds NaN"),
    "not a rotation": ({"world_to_camera": changed(4, 0, 0, 2.0)}, "frame 4: the rotation is off orthonormal"),
    "mirrored": ({"world_to_camera": MIRROR.tolist()}, "frame 0: the rotation is a reflection"),
    "last row": ({"world_to_camera": changed(1, 3, 2, 0.5)}, "frame 1: pose is not a rigid transform"),
    "transposed": ({"world_to_camera": poses().mT.tolist()}, "frame 0: pose is not a rigid transform"),
    "too few": ({"world_to_camera": poses()[:4].tolist()}, "4 poses for a video of 5 frames"),
    "ragged": ({"world_to_camera": [[1, 2], [3]]}, "world_to_camera must hold 4x4 matrices"),
    "3x4": ({"world_to_camera": poses()[:, :3].tolist()}, "must hold 4x4 matrices, its shape is"),
    "null": ({"world_to_camera": None}, "world_to_camera must hold 4x4 matrices"),
    "image size": ({"width": 128, "height": 96}, "K_px is for 128 x 96 pixels, the video has 64 x 48"),
    "turned": ({"width": HEIGHT, "height": WIDTH}, "K_px is for 48 x 64 pixels"),
    "focal length": ({"K_px": [[-60, 0, 30], [0, 58, 25], [0, 0, 1]]}, "positive focal lengths"),
    "K of some": ({"K_px": K_PX.repeat(3, 1, 1).tolist()}, "3 intrinsics for 5 frames"),
    "K nan": ({"K_px": [[math.nan, 0, 30], [0, 58, 25], [0, 0, 1]]}, "K_px holds NaN"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_wrong_is_named_in_one_line(tmp_path, name):
    changes, reason = BAD[name]
    path = write(tmp_path / "bad.cameras.json")
    read(path)  # negative control: unchanged it is fine
    with pytest.raises(ValueError) as error:
        read(write(path, **changes))
    message = str(error.value)
    assert str(path) in message and reason in message and "\n" not in message


def test_unknown_poses_are_null_in_the_file_and_nan_when_read(tmp_path):
    path = tmp_path / "a.cameras.json"
    some = poses()
    some[[0, 3]] = math.nan
    write_cameras(path, some, K_PX, width=WIDTH, height=HEIGHT)
    assert [pose is None for pose in json.loads(path.read_text())["world_to_camera"]] == [
        True,
        False,
        False,
        True,
        False,
    ]
    world_to_camera, K = read(path)
    assert world_to_camera[[0, 3]].isnan().all() and K.isfinite().all()
    assert torch.allclose(world_to_camera[[1, 2, 4]], poses()[[1, 2, 4]], atol=1e-14)

    write_cameras(path, some * math.nan, K_PX, width=WIDTH, height=HEIGHT)
    with pytest.raises(ValueError, match="no frame has a pose"):
        read(path)


MALFORMED = [("{", "not valid JSON"), ("[]", "no width"), ('{"width": 1}', "no height")]


@pytest.mark.parametrize("text, reason", MALFORMED)
def test_malformed_files(tmp_path, text, reason):
    path = tmp_path / "bad.cameras.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=reason):
        read(path)
    with pytest.raises(ValueError, match=r"absent\.cameras\.json: can't be read"):
        read(tmp_path / "absent.cameras.json")


@pytest.mark.skipif("ZOO_REALDATA" not in os.environ, reason="ZOO_REALDATA is unset: no real poses")
def test_real_poses_of_seven_scenes(tmp_path):
    """Real rotations are off by some 4e-4: accepted and projected, camera centers as stated."""
    root = Path(os.environ["ZOO_REALDATA"]) / "scenes/7scenes_redkitchen"
    rows = [line.split() for line in (root / "poses_c2w.txt").read_text().splitlines() if line[0] != "#"]
    numbers = torch.tensor([[float(x) for x in row[1:]] for row in rows], dtype=torch.float64)
    camera_to_world = numbers.reshape(-1, 4, 4)
    video = Video(root / "video_640x480_30fps.mp4")
    K_px = torch.tensor([[585.0, 0, 320], [0, 585, 240], [0, 0, 1]], dtype=torch.float64)
    path = tmp_path / "redkitchen.cameras.json"
    write_cameras(path, torch.linalg.inv(camera_to_world), K_px, width=video.width, height=video.height)
    world_to_camera, K = read_cameras(path, video.num_frames, video.height, video.width)
    centers = invert_se3(world_to_camera)[:, :3, 3]
    assert (centers - camera_to_world[:, :3, 3]).norm(dim=1).max() < 5e-3  # meters
    assert torch.allclose(K[0].diagonal(), torch.tensor([585 / 640, 585 / 480, 1], dtype=torch.float64))
