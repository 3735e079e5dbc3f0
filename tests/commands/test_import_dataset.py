"""import-cameras --dataset: all scenes of a dataset, and conversations that find their cameras and depth by scene."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from commands.import_cameras import import_cameras
from datamodules.cameras_file import read_cameras
from datamodules.depth import read_depth
from datamodules.scenes import Scene
from datamodules.sources import Conversations, Mixture
from datamodules.sources.mixture import Part
from datamodules.trajectories.base import upright_turns
from datamodules.video import Video
from tests.datamodules.clips import numbered_frame, write_video
from tests.datamodules.sources import kitchen as real
from tests.datamodules.trajectories.captures import CX, CY, FX, FY, NAMES, Walk, arkitscenes, images, scannet, walk
from zoo.cameras.poses import invert_se3
from zoo.errors import InputError


@pytest.fixture(autouse=True)
def no_drawing(monkeypatch: pytest.MonkeyPatch) -> None:
    """The picture of a path takes a third of a second, and test_import_cameras.py has one drawn."""
    monkeypatch.setattr("commands.import_cameras.camera_map", lambda *_: Image.new("RGB", (8, 8)))


def scannetpp(folder: Path, scene: Walk) -> None:
    images(folder / "dslr/resized_undistorted_images")
    opengl = scene.camera_to_world() @ np.diag([1.0, -1, -1, 1])
    rows = [{"file_path": name, "transform_matrix": pose.tolist()} for name, pose in zip(NAMES, opengl, strict=True)]
    content = {"fl_x": FX, "fl_y": FY, "cx": CX, "cy": CY, "w": 64, "h": 48, "frames": rows}
    (folder / "dslr/nerfstudio").mkdir()
    (folder / "dslr/nerfstudio/transforms_undistorted.json").write_text(json.dumps(content))
    (folder / "iphone").mkdir()
    K = [[30 * FX, 0, 30 * CX], [0, 30 * FY, 30 * CY], [0, 0, 1]]  # of 1920 x 1440 pixels
    poses = {f"frame_{i:06d}": pose.tolist() for i, pose in enumerate(scene.camera_to_world())}
    phone = {name: {"aligned_pose": pose, "intrinsic": K} for name, pose in poses.items()}
    (folder / "iphone/pose_intrinsic_imu.json").write_text(json.dumps(phone))


LAYOUTS = {
    "arkitscenes": (arkitscenes, "raw/Training/41069025", "raw/Validation/41069042"),
    "scannet": (scannet, "scans/scene0000_00", "scans/scene0000_01"),
    "scannetpp": (scannetpp, "data/036bce3393", "data/0a5c013435"),
}
SPELLINGS = ("{dataset}/{scene}.mp4", "{dataset}/videos/{scene}.mp4", "videos/{scene}.mp4", "/elsewhere/{scene}.mp4")


def bulk(dataset: str, tmp_path: Path, *words: str) -> None:
    import_cameras(["--dataset", dataset, str(tmp_path / "root"), "--output", str(tmp_path / "out"), *words])


def talk(tmp_path: Path, *videos: str) -> Path:
    turns = [{"from": "human", "value": "<video>\nHow large?"}, {"from": "gpt", "value": "23.5"}]
    rows = [json.dumps({"video": video, "conversations": turns}) for video in videos]
    (tmp_path / "train.jsonl").write_text("\n".join(rows))
    return tmp_path / "train.jsonl"


def cameras_of(scene: Scene) -> torch.Tensor:
    assert scene.cameras is not None
    video = Video(scene.video)
    return read_cameras(scene.cameras, video.num_frames, video.height, video.width)[0]


@pytest.mark.parametrize("dataset", LAYOUTS)
def test_scenes_of_a_dataset_are_found_by_conversations(dataset: str, tmp_path: Path, capsys) -> None:
    write, *folders = LAYOUTS[dataset]
    scenes = [tmp_path / "root" / folder for folder in folders]
    for scene in scenes:
        write(scene, walk())
    upright = ["--poses", "ARKitScenes", "--poses.upright", "false"] if dataset == "arkitscenes" else []

    # 1. A scene that is damaged is listed, and the others are made.
    damaged = next(file for file in sorted(scenes[1].rglob("*")) if file.suffix in (".pincam", ".txt", ".json"))
    content = damaged.read_text()
    damaged.write_text("}")
    with pytest.raises(InputError, match="1 of 2 scenes have no cameras"):
        bulk(dataset, tmp_path, *upright)
    assert "1 made, 0 kept, 1 failed" in capsys.readouterr().out
    listing = tmp_path / f"out/{dataset}.failed.txt"
    assert listing.read_text().splitlines()[1].startswith(f"{scenes[1].name}: {scenes[1]}")

    # 2. The next call goes on.
    damaged.write_text(content)
    bulk(dataset, tmp_path, *upright, "--workers", "1")
    assert "1 made, 1 kept;" in capsys.readouterr().out and not listing.exists()
    assert not list(tmp_path.glob("out/*/.*"))
    listing.write_text("my own notes\n")
    bulk(dataset, tmp_path, *upright)
    assert listing.read_text() == "my own notes\n"

    # 3. Each spelling of a video's name finds the same cameras, and those of the other scene are others.
    expected = torch.from_numpy(walk().world_to_camera())
    for spelling in SPELLINGS:
        names = [spelling.format(dataset=dataset, scene=scene.name) for scene in scenes]
        source = Mixture([Part(path=str(talk(tmp_path, *names)), cameras=str(tmp_path / "out"))])
        listed = source.scenes("train")
        assert not source.missing and [scene.video.name for scene in listed] == [scene.name for scene in scenes]
        assert (cameras_of(listed[0]) - expected).abs().max() < 1e-12
    with pytest.raises(InputError, match="no cameras of any scene"):
        (tmp_path / "other.mp4").touch()
        Conversations(str(talk(tmp_path, "other.mp4")), cameras=str(tmp_path / "out")).scenes("train")


@pytest.mark.parametrize(("dataset", "frames"), [("scannet", 2), ("scannetpp", 4)])
def test_videos_of_a_recording_are_matched_frame_by_frame(
    dataset: str, frames: int, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    write, folder, other = LAYOUTS[dataset]
    scene = tmp_path / "root" / folder
    for raw in (scene, tmp_path / "root" / other):  # the other one has no video
        write(raw, walk())
    if dataset == "scannet":
        shutil.copytree(scene / "color", scene / "depth")
        for file in (scene / "depth").iterdir():
            file.rename(file.with_suffix(".png"))
    video = tmp_path / f"videos/{dataset}/train/{scene.name}.mp4"
    video.parent.mkdir(parents=True)
    write_video(video, [numbered_frame(i, 48, 64) for i in range(frames)])
    bulk(dataset, tmp_path, "--videos", str(tmp_path / "videos"))
    assert "1 made, 0 kept, 1 without a video" in capsys.readouterr().out
    path = talk(tmp_path, f"{dataset}/train/{scene.name}.mp4")
    (listed,) = Conversations(str(path), str(tmp_path / "videos"), str(tmp_path / "out")).scenes("train")
    expected = torch.from_numpy(walk().world_to_camera())[:: len(NAMES) // frames]
    assert listed.video == video and (cameras_of(listed) - expected).abs().max() < 1e-12
    if dataset == "scannet":
        assert listed.depth is not None and len(list(listed.depth.iterdir())) == frames
    write_video(video, [numbered_frame(i, 48, 64) for i in range(5)])  # more frames than the recording has
    shutil.rmtree(tmp_path / "out")
    with pytest.raises(InputError, match="1 of 1 scenes"):
        bulk(dataset, tmp_path, "--videos", str(tmp_path / "videos"))
    assert "5 frames for 4 poses without times" in (tmp_path / f"out/{dataset}.failed.txt").read_text()


def test_depth_is_matched_with_the_frames_of_a_video_by_time(tmp_path: Path) -> None:
    """A frame without one near in time has an empty map; all are turned as the video is."""
    write, folder, _ = LAYOUTS["arkitscenes"]
    scene, turns = tmp_path / "root" / folder, upright_turns(torch.from_numpy(walk().world_to_camera()))
    assert turns == 2  # upside down
    write(scene, walk())
    (scene / "lowres_depth").mkdir()
    maps = np.random.default_rng(0).integers(1, 5000, (3, 6, 8)).astype(np.uint16)
    for time_s, depth in zip((0.01, 1.0, 2.03), maps, strict=True):
        Image.fromarray(depth).save(scene / f"lowres_depth/{scene.name}_{time_s:.3f}.png")
    video = tmp_path / f"videos/{scene.name}.mp4"
    video.parent.mkdir()
    write_video(video, [numbered_frame(i, 48, 64) for i in range(4)], pts=[0, 30, 60, 90])
    bulk("arkitscenes", tmp_path, "--videos", str(video.parent), "--poses=ARKitScenes", "--poses.video_depth=true")
    path = talk(tmp_path, video.name)
    (listed,) = Conversations(str(path), str(video.parent), str(tmp_path / "out")).scenes("train")
    assert listed.video == video
    found = read_depth(str(listed.depth), range(4), num_frames=4, size_hw=(6, 8))
    assert np.allclose(found[:3] * 1000, np.rot90(maps, turns, (1, 2))) and not found[3].any()


@pytest.mark.slow
def test_a_real_sequence_in_arkitscenes_layout(realdata: Path, tmp_path: Path) -> None:
    folder = realdata / "scenes/7scenes_redkitchen"
    kitchen = real.Kitchen(folder)
    real.arkit(kitchen, tmp_path / f"root/Training/{real.ID}")
    video = tmp_path / f"videos/arkitscenes/{real.ID}.mp4"
    video.parent.mkdir(parents=True)
    video.symlink_to(folder / "video_320x240_30fps.mp4")
    first = str(real.between_frames(kitchen)[0] / -real.FPS)  # the video starts before the first pose
    bulk("arkitscenes", tmp_path, "--videos", str(tmp_path / "videos"), "--clock.start_s", first)
    path = talk(tmp_path, f"arkitscenes/{real.ID}.mp4")
    (scene,) = Conversations(str(path), str(tmp_path / "videos"), str(tmp_path / "out")).scenes("train")
    poses, expected = cameras_of(scene), invert_se3(kitchen.camera_to_world)
    errors = (invert_se3(poses)[:, :3, 3] - kitchen.camera_to_world[:, :3, 3]).norm(dim=-1)
    assert len(poses) == 1000 and errors.nanmedian() < 0.002  # meters; every second pose is interpolated
    assert (invert_se3(poses)[:, :3, 3] - expected[:, :3, 3]).norm(dim=-1).nanmedian() > 0.1  # negative control
