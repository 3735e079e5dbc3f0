"""Posed scenes of every format end in the same cameras; real depth says whether they are right.

7-Scenes RedKitchen is written in the format of each dataset. A frame's depth, carried by the cameras into the next
frame, must be the depth found there.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch

from datamodules.depth import read_depth
from datamodules.sources.posed import TimestampMatching
from datamodules.trajectories import ARKitScenes
from datamodules.video import Video
from tests.datamodules.sources.kitchen import (
    FORMATS,
    FPS,
    HEIGHT,
    ID,
    PICKED,
    WIDTH,
    Kitchen,
    arkit,
    ask,
    cameras_of,
    link,
    posed,
)
from zoo.cameras.poses import invert_se3


def reprojection_error(depth_m: torch.Tensor, world_to_camera: torch.Tensor, K: torch.Tensor) -> float:
    """Median over the points of all frames of the relative error of the depth that the next frame has of them."""
    errors = []
    height, width = depth_m.shape[1:]
    y, x = torch.meshgrid(torch.arange(0, height, 8), torch.arange(0, width, 8), indexing="ij")
    for i in range(len(depth_m) - 1):
        z = depth_m[i, y, x].double().flatten()
        rays = torch.stack(
            (
                ((x + 0.5) / width - 0.5 - K[i, 0, 2]) / K[i, 0, 0],
                ((y + 0.5) / height - 0.5 - K[i, 1, 2]) / K[i, 1, 1],
                torch.ones_like(x),
            )
        ).reshape(3, -1)
        points = torch.cat((rays * z, torch.ones(1, len(z), dtype=torch.float64)))
        there = (world_to_camera[i + 1] @ invert_se3(world_to_camera[i]) @ points)[:3]
        u = ((K[i + 1, 0, 0] * there[0] / there[2] + K[i + 1, 0, 2] + 0.5) * width).floor().long()
        v = ((K[i + 1, 1, 1] * there[1] / there[2] + K[i + 1, 1, 2] + 0.5) * height).floor().long()
        seen = (z > 0) & (there[2] > 0.1) & (u >= 0) & (u < width) & (v >= 0) & (v < height)
        found = depth_m[i + 1, v[seen], u[seen]].double()
        expected = there[2, seen]
        errors.append(((found - expected).abs() / expected)[found > 0])
    return float(torch.cat(errors).median())


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_gives_the_same_cameras_and_real_depth_agrees(name, kitchen, tmp_path):
    poses, write = FORMATS[name]
    write(kitchen, tmp_path / "raw/kitchen")
    ask(tmp_path / "raw", "kitchen")
    source = posed(tmp_path, poses)
    source.prepare()
    (scene,) = source.scenes("test")
    video, world_to_camera, K = cameras_of(scene)
    assert (scene.name, video.num_frames, video.width, video.height) == ("raw/kitchen", len(PICKED), WIDTH, HEIGHT)
    first = Video(kitchen.folder / "rgb").read([PICKED[0] // 10])
    assert torch.equal(video.read([0]), first)

    expected = invert_se3(kitchen.camera_to_world[list(PICKED)])
    interpolated = name in ("TUM", "ARKitScenes")
    assert torch.allclose(world_to_camera, expected, atol=5e-2 if interpolated else 1e-6)
    depth = torch.cat([real_depth(kitchen, frame) for frame in PICKED])
    assert reprojection_error(depth, world_to_camera, K) < 0.01
    assert reprojection_error(depth, invert_se3(world_to_camera), K) > 0.015  # negative control: read as the inverse
    if scene.depth is not None:
        own = read_depth(scene.depth, range(len(PICKED)), num_frames=len(PICKED), size_hw=(HEIGHT, WIDTH))
        assert torch.equal(own, depth)
    assert (scene.depth is not None) == (name in ("7-Scenes", "ScanNet", "ARKitScenes"))


def real_depth(kitchen: Kitchen, frame: int) -> torch.Tensor:
    folder = kitchen.folder / "depth"
    return read_depth(folder, [frame // 10], num_frames=100, size_hw=(HEIGHT, WIDTH))


@pytest.mark.parametrize("held", [1, *(pytest.param(each, marks=pytest.mark.slow) for each in (2, 3))])
def test_pictures_of_a_turned_device_are_upright_and_their_cameras_right(held, kitchen, tmp_path):
    arkit(kitchen, tmp_path / "raw" / ID, held)
    ask(tmp_path / "raw", ID)
    source = posed(tmp_path, ARKitScenes())
    source.prepare()
    (scene,) = source.scenes("test")
    video, world_to_camera, K = cameras_of(scene)
    assert (video.width, video.height) == (WIDTH, HEIGHT)
    assert torch.equal(video.read([3]), Video(kitchen.folder / "rgb").read([PICKED[3] // 10]))
    assert torch.allclose(world_to_camera, invert_se3(kitchen.camera_to_world[list(PICKED)]), atol=5e-2)
    assert scene.depth is not None
    depth = read_depth(scene.depth, range(len(PICKED)), num_frames=len(PICKED), size_hw=(HEIGHT, WIDTH))
    assert reprojection_error(depth, world_to_camera, K) < 0.01

    lying = posed(tmp_path, ARKitScenes(upright=False))  # negative control: the pictures as they were taken
    lying.prepare()
    _, as_taken, K_taken = cameras_of(lying.scenes("test")[0])
    assert reprojection_error(depth, as_taken, K_taken if held == 2 else K) > 0.015


@pytest.mark.parametrize("held", [0, 1])
def test_the_frames_of_a_video_find_their_poses_by_time(held, kitchen, tmp_path):
    """The real video at half the size, beside a trajectory that starts 0.1 s into it and has a gap.

    The video was turned upright; the poses are those of the device as it was held.
    """
    folder = tmp_path / "raw" / ID
    arkit(kitchen, folder, held)
    rows = np.loadtxt(folder / "lowres_wide.traj")
    start, gap = 3 / FPS, (20.0, 21.0)
    rows = rows[(rows[:, 0] >= start) & ~((rows[:, 0] > gap[0]) & (rows[:, 0] < gap[1]))]
    np.savetxt(folder / "lowres_wide.traj", rows)
    ask(tmp_path / "raw", ID)
    link(tmp_path / f"videos/raw/{ID}.mp4", kitchen.folder / "video_320x240_30fps.mp4")
    source = posed(
        tmp_path,
        ARKitScenes(),
        videos=str(tmp_path / "videos"),
        clock=TimestampMatching(tolerance_s=0.05, start_s=-start),
    )
    source.prepare()
    (scene,) = source.scenes("test")
    video, world_to_camera, K = cameras_of(scene)
    assert (video.num_frames, video.width) == (1000, 320) and scene.depth is None
    known = world_to_camera.isfinite().flatten(1).all(1)
    times_s = torch.tensor(video.times_s)
    edge = 0.05 + 1e-4
    assert not known[(times_s > gap[0] + edge) & (times_s < gap[1] - edge)].any()
    assert not known[times_s < start - edge].any() and known[(times_s > 2) & (times_s < 19)].all()
    depth = torch.cat([real_depth(kitchen, frame) for frame in PICKED])
    chosen = list(PICKED)
    assert reprojection_error(depth, world_to_camera[chosen], K[chosen]) < 0.01
    late = [frame + 300 for frame in chosen]  # negative control: another clock
    assert reprojection_error(depth, world_to_camera[late], K[late]) > 0.015
