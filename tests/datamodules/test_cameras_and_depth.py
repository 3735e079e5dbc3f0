"""Files of cameras and depth beside a video: numbers come back exactly, and what is wrong is named in one line."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from datamodules import Rooms
from datamodules.cameras_file import read_cameras, write_cameras
from datamodules.depth import find_depth, read_depth, register_renderer
from tests.conftest import ROOMS
from tests.poses import random_poses
from tests.zoo.geometry.projection import project_points
from zoo.cameras import invert_se3
from zoo.geometry import unproject_depth

N, HEIGHT, WIDTH = 5, 48, 64
K_PX = torch.tensor([[60.0, 0.0, 30.0], [0.0, 58.0, 25.0], [0.0, 0.0, 1.0]], dtype=torch.float64)
POSES = random_poses(N).double()


def read(path: Path) -> tuple[torch.Tensor, torch.Tensor]:
    return read_cameras(path, N, HEIGHT, WIDTH)


def write(path: Path, **changes: object) -> Path:
    """A valid file, with some entries changed."""
    write_cameras(path, POSES, K_PX, width=WIDTH, height=HEIGHT)
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    return path


def test_what_is_written_is_read(tmp_path: Path) -> None:
    path, per_frame = tmp_path / "a.cameras.json", K_PX.repeat(N, 1, 1)
    per_frame[:, 0, 0] += torch.arange(N)
    write_cameras(path, POSES, per_frame, width=WIDTH, height=HEIGHT, times_s=[i / 30 for i in range(N)])
    world_to_camera, K = read(path)
    assert world_to_camera.dtype == K.dtype == torch.float64
    assert torch.allclose(world_to_camera, POSES, atol=1e-14)
    assert torch.allclose(K[:, 0, 0], per_frame[:, 0, 0] / WIDTH)
    assert json.loads(path.read_text())["times_s"][1] == 1 / 30
    _, K = read(write(path))  # one K for all frames, normalized by the image's size
    expected = torch.tensor([[60 / 64, 0, 30 / 64 - 0.5], [0, 58 / 48, 25 / 48 - 0.5], [0, 0, 1]], dtype=torch.float64)
    assert torch.equal(K, expected.expand(N, 3, 3))


def test_rotations_are_projected(tmp_path: Path) -> None:
    noisy = POSES.clone()
    noisy[:, :3, :3] += 4e-4 * torch.randn(N, 3, 3, generator=torch.Generator().manual_seed(1))
    world_to_camera, _ = read(write(tmp_path / "a.cameras.json", world_to_camera=noisy.tolist()))
    gram = world_to_camera[:, :3, :3].mT @ world_to_camera[:, :3, :3]
    assert torch.allclose(gram, torch.eye(3, dtype=torch.float64).expand(N, 3, 3), atol=1e-12)
    assert not torch.allclose(noisy[:, :3, :3].mT @ noisy[:, :3, :3], gram, atol=1e-5)  # negative control


def test_unknown_poses_are_null_in_the_file_and_nan_when_they_are_read(tmp_path: Path) -> None:
    path, some = tmp_path / "a.cameras.json", POSES.clone()
    some[[0, 3]] = math.nan
    write_cameras(path, some, K_PX, width=WIDTH, height=HEIGHT)
    stored = json.loads(path.read_text())["world_to_camera"]
    assert [place for place, pose in enumerate(stored) if pose is None] == [0, 3]
    world_to_camera, K = read(path)
    assert world_to_camera[[0, 3]].isnan().all() and K.isfinite().all()
    assert torch.allclose(world_to_camera[[1, 2, 4]], POSES[[1, 2, 4]], atol=1e-14)
    write_cameras(path, some * math.nan, K_PX, width=WIDTH, height=HEIGHT)
    with pytest.raises(ValueError, match="no frame has a pose"):
        read(path)


def changed(frame: int, row: int, column: int, value: float) -> list:
    matrices = POSES.tolist()
    matrices[frame][row][column] = value
    return matrices


MIRROR = torch.diag(torch.tensor([1.0, 1.0, -1.0, 1.0])).repeat(N, 1, 1)
BAD = {
    "nan": ({"world_to_camera": changed(3, 0, 3, math.nan)}, "frame 3: world_to_camera holds NaN"),
    "infinite": ({"world_to_camera": changed(2, 1, 1, math.inf)}, "frame 2: world_to_camera holds NaN"),
    "not a rotation": ({"world_to_camera": changed(4, 0, 0, 2.0)}, "frame 4: the rotation is off orthonormal"),
    "mirrored": ({"world_to_camera": MIRROR.tolist()}, "frame 0: the rotation is a reflection"),
    "transposed": ({"world_to_camera": POSES.mT.tolist()}, "frame 0: pose is not a rigid transform"),
    "too few": ({"world_to_camera": POSES[:4].tolist()}, "4 poses for a video of 5 frames"),
    "ragged": ({"world_to_camera": [[1, 2], [3]]}, "world_to_camera must hold 4x4 matrices"),
    "3x4": ({"world_to_camera": POSES[:, :3].tolist()}, "must hold 4x4 matrices"),
    "null": ({"world_to_camera": None}, "world_to_camera must hold 4x4 matrices"),
    "turned": ({"width": HEIGHT, "height": WIDTH}, "K_px is for 48 x 64 pixels, the video has 64 x 48"),
    "text": ({"width": "64"}, "width must be a whole number of pixels, not '64'"),
    "focal length": ({"K_px": [[-60, 0, 30], [0, 58, 25], [0, 0, 1]]}, "positive focal lengths"),
    "K of some": ({"K_px": K_PX.repeat(3, 1, 1).tolist()}, "3 intrinsics for 5 frames"),
    "K nan": ({"K_px": [[math.nan, 0, 30], [0, 58, 25], [0, 0, 1]]}, "K_px holds NaN"),
    "cut short": ("{", "not valid JSON"),
    "a list": ("[]", "no width"),
    "no height": ('{"width": 1}', "no height"),
    "absent": (None, "can't be read"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_wrong_is_named_in_one_line(name: str, tmp_path: Path) -> None:
    (changes, reason), path = BAD[name], tmp_path / "bad.cameras.json"
    if isinstance(changes, str):
        path.write_text(changes)
    elif changes is not None:
        read(write(path))  # negative control: unchanged it is fine
        write(path, **changes)
    with pytest.raises(ValueError) as error:
        read(path)
    message = str(error.value)
    assert str(path) in message and reason in message and "\n" not in message


# ---- depth


def write_depth(folder: Path, millimeters: np.ndarray) -> Path:
    folder.mkdir()
    for i, image in enumerate(millimeters):
        Image.fromarray(image.astype(np.uint16)).save(folder / f"frame_{i}.png")
    return folder


def consistency(depth: torch.Tensor, world_to_camera: torch.Tensor, K_px: torch.Tensor) -> float:
    """Median relative error of the depth of frame 0 seen from frame 1, where it is visible there."""
    points = unproject_depth(depth[:1, ..., None], world_to_camera[:1], K_px[:1])[depth[:1] > 0]
    pixels, in_camera = project_points(points, world_to_camera[1], K_px[1])
    place = pixels.round().long()
    height, width = depth.shape[1:]
    inside = (in_camera[:, 2] > 0) & (place >= 0).all(1) & (place[:, 0] < width) & (place[:, 1] < height)
    seen = depth[1][place[inside, 1], place[inside, 0]]
    error = ((seen - in_camera[inside, 2]).abs() / in_camera[inside, 2])[seen > 0]
    assert len(error) > 500
    return float(error.median())


def test_rooms_come_with_depth_that_agrees_with_their_cameras(rooms_root: Path) -> None:
    scene = Rooms(scenes=ROOMS, root=str(rooms_root), workers=1).scenes("train")[0]
    assert scene.depth is not None and scene.depth == find_depth(scene.video)
    chosen = [3, 4]
    depth = read_depth(scene.depth, chosen, num_frames=48, size_hw=(56, 56))
    assert depth.dtype == torch.float32 and depth.shape == (2, 56, 56) and 0.1 < depth.min() < depth.max() < 20
    poses, K = read_cameras(scene.cameras, 48, 56, 56)
    K_px = K * 56
    K_px[:, :2, 2] = 28 - 0.5  # the renderer's rays go through the middle of a pixel
    K_px[:, 2, 2] = 1
    poses, K_px = poses[chosen].float(), K_px[chosen].float()
    assert consistency(depth, poses, K_px) < 0.02
    assert consistency(depth, invert_se3(poses), K_px) > 0.1
    assert torch.equal(read_depth(scene.depth, [4, 3], num_frames=48, size_hw=(56, 56)), depth.flip(0))


def test_images_are_millimeters_in_natural_order(tmp_path: Path) -> None:
    values = np.arange(11)[:, None, None] * 1000 + np.arange(12).reshape(3, 4) + 1
    values[10, 0, :2] = 0, 65535
    folder = write_depth(tmp_path / "kitchen.depth", values)
    (tmp_path / "kitchen.mp4").touch()
    assert find_depth(tmp_path / "kitchen.mp4") == folder and find_depth(tmp_path / "hall.mp4") is None
    depth = read_depth(folder, [10, 2, 2], num_frames=11, size_hw=(3, 4))
    assert torch.allclose(depth[1], torch.from_numpy(values[2] / 1000).float()) and torch.equal(depth[1], depth[2])
    assert depth[0, 0].tolist() == [0, 0, pytest.approx(10.003), pytest.approx(10.004)]  # not frame 1, as text sorts


def test_a_resized_map_holds_no_depth_that_was_not_there(tmp_path: Path) -> None:
    values = np.where(np.arange(8) < 4, 1000, 5000)[None, None].repeat(6, 1)
    depth = read_depth(write_depth(tmp_path / "x.depth", values), [0], num_frames=1, size_hw=(4, 5))
    assert depth.shape == (1, 4, 5) and set(depth.unique().tolist()) == {1.0, 5.0}
    bilinear = torch.nn.functional.interpolate(depth[:, None], (6, 8), mode="bilinear")
    assert len(bilinear.unique()) > 2  # negative control


def test_depth_that_is_wrong_is_named(tmp_path: Path) -> None:
    folder = write_depth(tmp_path / "a.depth", np.ones((2, 2, 2)))
    with pytest.raises(ValueError, match="a.depth: 2 depth images for 3 frames"):
        read_depth(folder, [0], num_frames=3, size_hw=(2, 2))
    for image, reason in (
        (np.ones((3, 2), np.uint16), "a.depth: depth images of 2 sizes"),
        (np.ones((2, 2), np.uint8), "frame_1.png: depth must be a 16-bit PNG"),
        (None, "frame_1.png: unreadable"),
    ):
        if image is None:
            (folder / "frame_1.png").write_bytes(b"no image")
        else:
            Image.fromarray(image).save(folder / "frame_1.png")
        with pytest.raises(ValueError, match=reason):
            read_depth(folder, [0, 1], num_frames=2, size_hw=(2, 2))


def test_another_dataset_renders_depth_from_its_own_descriptions(tmp_path: Path) -> None:
    register_renderer(".maze.txt", lambda path, frames: np.stack([np.full((2, 3), i, np.float32) for i in frames]))
    video, description = tmp_path / "a.mp4", tmp_path / "a.maze.txt"
    assert find_depth(video) is None
    description.touch()
    assert find_depth(video) == description
    depth = read_depth(description, [5, 1], num_frames=9, size_hw=(4, 6))
    assert depth.shape == (2, 4, 6) and depth[:, 0, 0].tolist() == [5, 1]
