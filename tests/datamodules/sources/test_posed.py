"""Posed scenes end in the right cameras, as real depth says.

7-Scenes RedKitchen is written in its own format and in that of ARKitScenes. A frame's depth, carried by the cameras
into the next frame, must be the depth found there. A scene with something wrong is named, and the rest goes on.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from datamodules.cameras_file import read_cameras
from datamodules.depth import read_depth
from datamodules.scenes import Scene
from datamodules.sources.posed import PosedScenes, TimestampMatching
from datamodules.trajectories import ARKitScenes, Nerfstudio, PoseFormat, ScanNet, SevenScenes
from datamodules.video import Video
from tests.datamodules.sources.kitchen import (
    FPS,
    HEIGHT,
    ID,
    PICKED,
    WIDTH,
    Kitchen,
    arkit,
    link,
    seven_scenes,
)
from zoo.cameras import invert_se3

Write = Callable[[Kitchen, Path], None]
FORMATS: dict[str, tuple[PoseFormat, Write]] = {
    "7-Scenes": (SevenScenes(), seven_scenes),
    "ARKitScenes": (ARKitScenes(), arkit),
}


@pytest.fixture(scope="module")
def kitchen(realdata: Path) -> Kitchen:
    return Kitchen(realdata / "scenes/7scenes_redkitchen")


def posed(tmp_path: Path, poses: PoseFormat, **settings: Any) -> PosedScenes:
    return PosedScenes(str(tmp_path / "raw"), poses, cache=str(tmp_path / "cache"), **settings)


def prepared(tmp_path: Path, poses: PoseFormat, *scenes: str, **settings: Any) -> PosedScenes:
    """A source with a question about each of the scenes, with their cameras made."""
    row = {"dataset": "raw", "question_type": "object_counting", "question": "How many?", "ground_truth": "2"}
    rows = [row | {"id": i, "scene_name": scene} for i, scene in enumerate(scenes)]
    (tmp_path / "raw/test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    source = posed(tmp_path, poses, **settings)
    source.prepare()
    return source


def cameras_of(scene: Scene) -> tuple[Video, torch.Tensor, torch.Tensor]:
    video = Video(scene.video)
    assert scene.cameras is not None
    return video, *read_cameras(scene.cameras, video.num_frames, video.height, video.width)


def reprojection_error(depth_m: torch.Tensor, world_to_camera: torch.Tensor, K: torch.Tensor) -> float:
    """Median over the points of all frames of the relative error of the depth that the next frame has of them."""
    errors = []
    height, width = depth_m.shape[1:]
    y, x = torch.meshgrid(torch.arange(0, height, 8), torch.arange(0, width, 8), indexing="ij")
    for i in range(len(depth_m) - 1):
        z = depth_m[i, y, x].double().flatten()
        columns, rows = (x + 0.5) / width - 0.5 - K[i, 0, 2], (y + 0.5) / height - 0.5 - K[i, 1, 2]
        rays = torch.stack((columns / K[i, 0, 0], rows / K[i, 1, 1], torch.ones_like(columns))).reshape(3, -1)
        points = torch.cat((rays * z, torch.ones(1, len(z), dtype=torch.float64)))
        there = (world_to_camera[i + 1] @ invert_se3(world_to_camera[i]) @ points)[:3]
        u = ((K[i + 1, 0, 0] * there[0] / there[2] + K[i + 1, 0, 2] + 0.5) * width).floor().long()
        v = ((K[i + 1, 1, 1] * there[1] / there[2] + K[i + 1, 1, 2] + 0.5) * height).floor().long()
        seen = (z > 0) & (there[2] > 0.1) & (u >= 0) & (u < width) & (v >= 0) & (v < height)
        found = depth_m[i + 1, v[seen], u[seen]].double()
        expected = there[2, seen]
        errors.append(((found - expected).abs() / expected)[found > 0])
    return float(torch.cat(errors).median())


def real_depth(kitchen: Kitchen) -> torch.Tensor:
    folder, frames = kitchen.folder / "depth", [frame // 10 for frame in PICKED]
    return read_depth(folder, frames, num_frames=100, size_hw=(HEIGHT, WIDTH))


@pytest.mark.parametrize("name", FORMATS)
def test_cameras_are_those_that_were_written_and_real_depth_agrees(name, kitchen, tmp_path):
    poses, write = FORMATS[name]
    write(kitchen, tmp_path / "raw/kitchen")
    (scene,) = prepared(tmp_path, poses, "kitchen").scenes("test")
    video, world_to_camera, K = cameras_of(scene)
    assert (scene.name, video.num_frames, video.width, video.height) == ("raw/kitchen", len(PICKED), WIDTH, HEIGHT)
    first = Video(kitchen.folder / "rgb").read([PICKED[0] // 10])
    assert torch.equal(video.read([0]), first)

    expected = invert_se3(kitchen.camera_to_world[list(PICKED)])
    assert torch.allclose(world_to_camera, expected, atol=5e-2 if name == "ARKitScenes" else 1e-6)  # interpolated
    depth = real_depth(kitchen)
    assert reprojection_error(depth, world_to_camera, K) < 0.01
    assert reprojection_error(depth, invert_se3(world_to_camera), K) > 0.015  # negative control: read as the inverse
    assert scene.depth is not None
    own = read_depth(scene.depth, range(len(PICKED)), num_frames=len(PICKED), size_hw=(HEIGHT, WIDTH))
    assert torch.equal(own, depth)


@pytest.mark.parametrize("held", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_pictures_of_a_turned_device_are_upright_and_their_cameras_right(held, kitchen, tmp_path):
    arkit(kitchen, tmp_path / "raw" / ID, held)
    (scene,) = prepared(tmp_path, ARKitScenes(), ID).scenes("test")
    video, world_to_camera, K = cameras_of(scene)
    assert (video.width, video.height) == (WIDTH, HEIGHT)
    assert torch.equal(video.read([3]), Video(kitchen.folder / "rgb").read([PICKED[3] // 10]))
    assert torch.allclose(world_to_camera, invert_se3(kitchen.camera_to_world[list(PICKED)]), atol=5e-2)
    assert scene.depth is not None
    depth = read_depth(scene.depth, range(len(PICKED)), num_frames=len(PICKED), size_hw=(HEIGHT, WIDTH))
    assert reprojection_error(depth, world_to_camera, K) < 0.01

    lying = prepared(tmp_path, ARKitScenes(upright=False), ID)  # negative control: the pictures as they were taken
    _, as_taken, K_taken = cameras_of(lying.scenes("test")[0])
    assert reprojection_error(depth, as_taken, K_taken if held == 2 else K) > 0.015


def test_the_frames_of_a_video_find_their_poses_by_time(kitchen, tmp_path):
    """The real video at half the size, beside a trajectory that starts 0.1 s into it and has a gap.

    The video was turned upright; the poses are those of the device as it was held.
    """
    folder = tmp_path / "raw" / ID
    arkit(kitchen, folder, held=1)
    rows = np.loadtxt(folder / "lowres_wide.traj")
    start, gap = 3 / FPS, (20.0, 21.0)
    rows = rows[(rows[:, 0] >= start) & ~((rows[:, 0] > gap[0]) & (rows[:, 0] < gap[1]))]
    np.savetxt(folder / "lowres_wide.traj", rows)
    link(tmp_path / f"videos/raw/{ID}.mp4", kitchen.folder / "video_320x240_30fps.mp4")
    clock = TimestampMatching(tolerance_s=0.05, start_s=-start)
    source = prepared(tmp_path, ARKitScenes(), ID, videos=str(tmp_path / "videos"), clock=clock)
    (scene,) = source.scenes("test")
    video, world_to_camera, K = cameras_of(scene)
    assert (video.num_frames, video.width) == (1000, 320) and scene.depth is None
    known = world_to_camera.isfinite().flatten(1).all(1)
    times_s = torch.tensor(video.times_s)
    edge = 0.05 + 1e-4
    assert not known[(times_s > gap[0] + edge) & (times_s < gap[1] - edge)].any()
    assert not known[times_s < start - edge].any() and known[(times_s > 2) & (times_s < 19)].all()
    depth, chosen = real_depth(kitchen), list(PICKED)
    assert reprojection_error(depth, world_to_camera[chosen], K[chosen]) < 0.01
    late = [frame + 300 for frame in chosen]  # negative control: another clock
    assert reprojection_error(depth, world_to_camera[late], K[late]) > 0.015


# ---- scenes with something wrong


def tiny_scannet(folder: Path, spoil: str = "", num_depth: int = 0) -> None:
    """A tiny ScanNet scene, perhaps with something wrong."""
    for name in ("color", "pose", "intrinsic", "depth"):
        (folder / name).mkdir(parents=True)
    for number in range(3):
        Image.new("RGB", (8, 6), (number, 0, 0)).save(folder / f"color/{number}.png")
        pose = np.eye(4)
        if spoil == "nan" or (spoil == "some nan" and number == 1):
            pose[0, 3] = np.nan
        if spoil == "stretched":
            pose[:3, :3] *= 1.5
        if not (spoil == "fewer poses" and number == 2):
            np.savetxt(folder / f"pose/{number}.txt", pose)
        if number < num_depth:
            Image.fromarray(np.full((6, 8), 900, np.uint16)).save(folder / f"depth/{number}.png")
    if spoil != "no intrinsics":
        K = np.diag([np.nan if spoil == "no focal length" else 8.0, 8, 1, 1])
        K[:2, 2] = (648, 484) if spoil == "other size" else (4, 3)
        np.savetxt(folder / "intrinsic/intrinsic_color.txt", K)


REASONS = {
    "nan": "no frame has a pose that is finite",
    "other size": "its intrinsics don't fit images of 8 x 6",
    "no focal length": "its intrinsics don't fit images",
    "stretched": "frame 0: the rotation is off orthonormal",
    "no intrinsics": "intrinsic_color.txt",
}


def test_a_broken_scene_is_named_and_counted_and_the_rest_goes_on(tmp_path, capsys):
    spoilt = [*REASONS, "some nan", "fewer poses", "fine"]
    for spoil in spoilt:
        tiny_scannet(tmp_path / "raw" / spoil, spoil)
    source = prepared(tmp_path, ScanNet(), *spoilt, "absent")
    said = capsys.readouterr().err
    for spoil, reason in REASONS.items():
        (line,) = (line for line in said.splitlines() if line.startswith(f"raw/{spoil}: skipped"))
        assert reason in line
    scenes = source.scenes("test")
    assert source.missing.keys() == {f"raw/{name}" for name in (*REASONS, "absent")}
    assert "raw/some nan: 1 of 3 frames have no pose and are excluded" in said and "raw/fine" not in said
    frames = {scene.name: cameras_of(scene)[0].num_frames for scene in scenes}
    assert frames == {"raw/some nan": 2, "raw/fewer poses": 2, "raw/fine": 3}


def test_a_scene_with_some_of_its_depth_says_that_it_goes_without(tmp_path, capsys):
    for name, count in (("all", 3), ("some", 2), ("none", 0)):
        tiny_scannet(tmp_path / "raw" / name, num_depth=count)
    source = prepared(tmp_path, ScanNet(), "all", "some", "none")
    said = capsys.readouterr().err
    assert "some/depth/2.png: absent, as are 1 of 3 depth images" in said and said.count("absent") == 1
    assert [scene.depth is not None for scene in source.scenes("test")] == [True, False, False]
    shutil.rmtree(tmp_path / "raw/all/depth")  # depth that is gone leaves nothing behind
    source.prepare()
    assert source.scenes("test")[0].depth is None and not list(source.folder.rglob("*.depth"))


def test_a_photograph_on_its_side_and_files_of_another_kind_cost_their_scene_alone(tmp_path, capsys):
    tiny_scannet(tmp_path / "raw/a")
    (tmp_path / "raw/a/color/1.png").unlink()
    picture, exif = tmp_path / "raw/a/color/1.jpg", Image.Exif()
    exif[0x0112] = 3  # upside down: the size is that of the cameras
    Image.new("RGB", (8, 6)).save(picture, exif=exif)
    source = prepared(tmp_path, ScanNet(), "a")
    assert f"raw/a: skipped, its cameras can't be read: {picture} is stored on its side" in capsys.readouterr().err
    assert source.scenes("test") == [] and source.missing.keys() == {"raw/a"}
    for content in ('{"frames": [5]}', '{"frames": null}', "[]", '{"w": Infinity, "frames": []}'):
        (tmp_path / "raw/a/transforms.json").write_text(content)
        source = prepared(tmp_path, Nerfstudio(), "a")
        assert "raw/a: skipped, its cameras can't be read: " in capsys.readouterr().err
        assert source.scenes("test") == [] and source.missing.keys() == {"raw/a"}


def two_scenes(tmp_path: Path) -> tuple[PosedScenes, Path, Path]:
    """Sound ones, with their cameras made; the files of both."""
    for name in "ab":
        tiny_scannet(tmp_path / "raw" / name)
    source = prepared(tmp_path, ScanNet(), "a", "b")
    a, b = (scene.cameras for scene in source.scenes("test"))
    assert a is not None and b is not None
    return source, a, b


def test_what_was_made_is_not_made_again_and_what_is_gone_is(tmp_path, capsys):
    source, a, b = two_scenes(tmp_path)
    whole, made = b.read_bytes(), a.stat().st_mtime_ns
    b.unlink()
    again = posed(tmp_path, ScanNet())
    assert [scene.name for scene in again.scenes("test")] == ["raw/a"] and again.missing.keys() == {"raw/b"}
    again.prepare()
    assert b.read_bytes() == whole and a.stat().st_mtime_ns == made
    assert len(again.scenes("test")) == 2 and again.missing == {}

    other = posed(tmp_path, Nerfstudio())  # other settings, another folder
    assert other.folder != source.folder
    other.prepare()
    assert "transforms.json" in capsys.readouterr().err
    assert other.scenes("test") == [] and len(other.missing) == 2


def test_raw_files_that_changed_are_read_anew(tmp_path, capsys):
    source, a, b = two_scenes(tmp_path)
    before, made = a.read_bytes(), b.stat().st_mtime_ns
    pose = np.eye(4)
    pose[0, 3] = 7
    np.savetxt(tmp_path / "raw/a/pose/1.txt", pose)
    source.prepare()
    assert a.read_bytes() != before and b.stat().st_mtime_ns == made
    a.unlink()
    a.with_name("a.made_of").unlink()  # nothing proves any more that the folder of frames was made here
    (source.folder / "raw/a/notes.txt").touch()
    source.prepare()
    assert "raw/a exists: move it away" in capsys.readouterr().err
    assert (source.folder / "raw/a/notes.txt").exists() and not a.exists()
    shutil.rmtree(source.folder / "raw/a")
    source.prepare()
    assert a.exists()
    (tmp_path / "raw/a/intrinsic/intrinsic_color.txt").unlink()  # what can't be read any more is not there
    source.prepare()
    assert [scene.name for scene in source.scenes("test")] == ["raw/b"]


def test_no_name_leaves_the_cache_and_no_split_is_without_questions(tmp_path):
    source, _, _ = two_scenes(tmp_path)
    victim = source.folder.parent / "mine.cameras.json"  # `raw/../../mine` of the cache
    victim.write_text("a user's own file}")
    tiny_scannet(tmp_path / "mine")
    with pytest.raises(ValueError, match=r"test.jsonl:2: raw/../../mine leaves its folder"):
        prepared(tmp_path, ScanNet(), "a", "../../mine")
    assert victim.read_text() == "a user's own file}"
    with pytest.raises(FileNotFoundError, match=r"val\.jsonl is absent"):
        source.scenes("val")


def test_a_video_that_does_not_fit_is_named(tmp_path, capsys, kitchen):
    arkit(kitchen, tmp_path / "raw" / ID)
    source = prepared(tmp_path, ARKitScenes(), ID, videos=str(tmp_path / "videos"))
    assert source.scenes("test") == [] and source.missing.keys() == {f"raw/{ID}"}  # no video at all

    (tmp_path / f"videos/raw/{ID}").mkdir(parents=True)
    Image.new("RGB", (480, 640)).save(tmp_path / f"videos/raw/{ID}/0.png")
    source.prepare()
    assert "480 x 640 pixels, the cameras are for 640 x 480" in capsys.readouterr().err
    assert source.scenes("test") == []
