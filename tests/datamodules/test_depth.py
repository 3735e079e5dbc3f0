"""Depth of raw frames: rendered again, from images, in the frames' size; what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from datamodules import Rooms
from datamodules.cameras_file import read_cameras
from datamodules.depth import find_depth, read_depth, register_renderer
from datamodules.sources.annotations import read_layout
from tests.conftest import ROOMS
from tests.zoo.geometry.projection import project_points
from zoo.cameras.poses import invert_se3
from zoo.geometry import unproject_depth


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
    rooms = Rooms(scenes=ROOMS, root=str(rooms_root), workers=1)
    scene = rooms.scenes("train")[0]
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
    folder = write_depth(tmp_path / "x.depth", values)
    depth = read_depth(folder, [0], num_frames=1, size_hw=(4, 5))
    assert depth.shape == (1, 4, 5) and set(depth.unique().tolist()) == {1.0, 5.0}
    bilinear = torch.nn.functional.interpolate(depth[:, None], (6, 8), mode="bilinear")
    assert len(bilinear.unique()) > 2


def test_a_layout_brings_depth(tmp_path: Path) -> None:
    question = (
        '{"id": 1, "dataset": "mine", "scene_name": "a", "question_type": "room_size_estimation", '
        '"question": "?", "ground_truth": "1"}'
    )
    (tmp_path / "train.jsonl").write_text(question)
    (tmp_path / "mine/a").mkdir(parents=True)
    assert read_layout(tmp_path, "train.jsonl")[0][0].depth is None
    folder = write_depth(tmp_path / "mine/a.depth", np.ones((1, 2, 2)))
    assert read_layout(tmp_path, "train.jsonl")[0][0].depth == folder


def test_refusals(tmp_path: Path) -> None:
    folder = write_depth(tmp_path / "a.depth", np.ones((2, 2, 2)))
    with pytest.raises(ValueError, match="a.depth: 2 depth images for 3 frames"):
        read_depth(folder, [0], num_frames=3, size_hw=(2, 2))
    Image.fromarray(np.ones((3, 2), np.uint16)).save(folder / "frame_1.png")
    with pytest.raises(ValueError, match="a.depth: depth images of 2 sizes"):
        read_depth(folder, [0, 1], num_frames=2, size_hw=(2, 2))
    Image.fromarray(np.ones((2, 2), np.uint8)).save(folder / "frame_1.png")
    with pytest.raises(ValueError, match="frame_1.png: depth must be a 16-bit PNG"):
        read_depth(folder, [1], num_frames=2, size_hw=(2, 2))
    (folder / "frame_1.png").write_bytes(b"no image")
    with pytest.raises(ValueError, match="frame_1.png: unreadable"):
        read_depth(folder, [1], num_frames=2, size_hw=(2, 2))


def test_a_real_depth_camera(realdata: Path) -> None:
    """7-Scenes: every 10th of its frames has depth; two of them, with their poses."""
    scene = realdata / "scenes/7scenes_redkitchen"
    depth = read_depth(scene / "depth", [0, 10], num_frames=100, size_hw=(480, 640))
    assert 0.5 < depth[depth > 0].median() < 4 and (depth == 0).float().mean() > 0.01
    rows = torch.from_numpy(np.loadtxt(scene / "poses_c2w.txt")[[0, 100], 1:])
    camera_to_world = rows.view(2, 4, 4).float()
    K_px = torch.tensor([[585.0, 0, 320], [0, 585, 240], [0, 0, 1]]).expand(2, 3, 3)
    assert consistency(depth, invert_se3(camera_to_world), K_px) < 0.01
    assert consistency(depth, camera_to_world, K_px) > 0.015


def test_another_dataset_renders_depth_from_its_own_descriptions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("datamodules.depth._renderers", {})
    register_renderer(".maze.txt", lambda path, frames: np.stack([np.full((2, 3), i, np.float32) for i in frames]))
    video, description = tmp_path / "a.mp4", tmp_path / "a.maze.txt"
    assert find_depth(video) is None
    description.touch()
    assert find_depth(video) == description
    depth = read_depth(description, [5, 1], num_frames=9, size_hw=(4, 6))
    assert depth.shape == (2, 4, 6) and depth[:, 0, 0].tolist() == [5, 1]
