"""Posed scenes of every format end in the same cameras; real depth says whether they are right.

7-Scenes RedKitchen is written in the format of each dataset. A frame's depth, carried by the cameras into the next
frame, must be the depth found there.
"""

from __future__ import annotations

import json
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from datamodules.cameras_file import read_cameras
from datamodules.depth import read_depth
from datamodules.scenes import Scene
from datamodules.sources.posed import Clock, PosedScenes
from datamodules.trajectories import (
    TUM,
    ARKitScenes,
    Nerfstudio,
    PoseFormat,
    ScanNet,
    ScanNetPlusPlus,
    SevenScenes,
)
from datamodules.trajectories.rotations import to_quaternion
from datamodules.video import Video
from tests.datamodules.sources.listing import totals
from zoo.cameras import invert_se3, nearest_rotation

FOCAL, CENTRE, WIDTH, HEIGHT = 585.0, (320.0, 240.0), 640, 480
PICKED = range(300, 360, 10)  # the frames whose pictures and depth there are, every tenth
FPS = 30
ID = "41069025"


class Kitchen:
    """The raw material: camera-to-world poses of all 1,000 frames, pictures and depth of every tenth."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        rows = torch.from_numpy(np.loadtxt(folder / "poses_c2w.txt"))
        poses = rows[:, 1:].reshape(-1, 4, 4)
        poses[:, :3, :3] = nearest_rotation(poses[:, :3, :3])
        # a world whose z axis points up: the first camera is held nearly level
        up = -poses[PICKED[0], :3, 1]
        forward = poses[PICKED[0], :3, 2] - up * (up @ poses[PICKED[0], :3, 2])
        forward /= forward.norm()
        world = torch.eye(4, dtype=torch.float64)
        world[:3, :3] = torch.stack((torch.linalg.cross(forward, up), forward, up))
        self.camera_to_world = world @ poses

    def rgb(self, frame: int) -> Path:
        return self.folder / f"rgb/{frame:06d}.jpg"

    def depth(self, frame: int) -> Path:
        return self.folder / f"depth/{frame:06d}.png"


@pytest.fixture(scope="module")
def kitchen(realdata: Path) -> Kitchen:
    return Kitchen(realdata / "scenes/7scenes_redkitchen")


def link(target: Path, source: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    target.symlink_to(source)


def seven_scenes(kitchen: Kitchen, folder: Path) -> None:
    for frame in PICKED:
        link(folder / f"frame-{frame:06d}.color.jpg", kitchen.rgb(frame))
        link(folder / f"frame-{frame:06d}.depth.png", kitchen.depth(frame))
        np.savetxt(folder / f"frame-{frame:06d}.pose.txt", kitchen.camera_to_world[frame])


def scannet(kitchen: Kitchen, folder: Path) -> None:
    (folder / "pose").mkdir(parents=True)
    (folder / "intrinsic").mkdir()
    for frame in (0, *PICKED):
        link(folder / f"color/{frame}.jpg", kitchen.rgb(frame))
        link(folder / f"depth/{frame}.png", kitchen.depth(frame))
        np.savetxt(folder / f"pose/{frame}.txt", kitchen.camera_to_world[frame])
    np.savetxt(folder / "pose/0.txt", np.full((4, 4), -np.inf))  # not tracked
    np.savetxt(folder / "intrinsic/intrinsic_color.txt", K_px_4x4())


def K_px_4x4() -> np.ndarray:
    K = np.diag([FOCAL, FOCAL, 1, 1])
    K[:2, 2] = CENTRE
    return K


def transforms(kitchen: Kitchen, file: Path, images: Path) -> None:
    opengl = np.diag([1.0, -1, -1, 1])
    frames = []
    for frame in PICKED:
        link(images / f"{frame:06d}.jpg", kitchen.rgb(frame))
        pose = kitchen.camera_to_world[frame].numpy() @ opengl
        frames.append({"file_path": f"{frame:06d}.jpg", "transform_matrix": pose.tolist()})
    camera = {"fl_x": FOCAL, "fl_y": FOCAL, "cx": CENTRE[0], "cy": CENTRE[1], "w": WIDTH, "h": HEIGHT}
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps({"camera_model": "PINHOLE", **camera, "frames": frames[::-1]}))


def nerfstudio(kitchen: Kitchen, folder: Path) -> None:
    transforms(kitchen, folder / "transforms.json", folder)


def scannet_pp(kitchen: Kitchen, folder: Path) -> None:
    nerfstudio_file = folder / "dslr/nerfstudio/transforms_undistorted.json"
    transforms(kitchen, nerfstudio_file, folder / "dslr/resized_undistorted_images")


def between_frames(kitchen: Kitchen) -> range:
    """Frames whose poses are written: the pictures lie between them, so that they must be interpolated."""
    return range(1, len(kitchen.camera_to_world), 2)


def tum(kitchen: Kitchen, folder: Path) -> None:
    for frame in PICKED:
        link(folder / f"rgb/{frame}.jpg", kitchen.rgb(frame))
    (folder / "rgb.txt").write_text("# list\n" + "".join(f"{frame / FPS:.6f} rgb/{frame}.jpg\n" for frame in PICKED))
    frames = between_frames(kitchen)
    poses = kitchen.camera_to_world[list(frames)]
    times_s = torch.tensor([frame / FPS for frame in frames], dtype=torch.float64)
    np.savetxt(folder / "groundtruth.txt", torch.cat((times_s[:, None], poses[:, :3, 3], quaternions(poses)), 1))


def quaternions(poses: torch.Tensor) -> torch.Tensor:
    return to_quaternion(poses[:, :3, :3])


def arkit(kitchen: Kitchen, folder: Path, held: int = 0) -> None:
    """held: clockwise quarter turns by which the device was held, so that its pictures lie on their side."""
    turn = torch.eye(4, dtype=torch.float64)
    for _ in range(held):  # a camera that is turned with the device, before the picture is taken
        turn = torch.tensor([[0.0, -1, 0, 0], [1, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]], dtype=torch.float64) @ turn
    frames = between_frames(kitchen)
    poses = turn @ invert_se3(kitchen.camera_to_world[list(frames)])
    q = quaternions(poses)
    q = torch.where(q[:, 3:] < 0, -q, q)
    axis_angle = q[:, :3] / q[:, :3].norm(dim=1, keepdim=True) * 2 * q[:, 3:].acos()
    times_s = torch.tensor([frame / FPS for frame in frames], dtype=torch.float64)
    folder.mkdir(parents=True, exist_ok=True)
    np.savetxt(folder / "lowres_wide.traj", torch.cat((times_s[:, None], axis_angle, poses[:, :3, 3]), 1))
    for name in ("lowres_wide", "lowres_wide_intrinsics", "lowres_depth"):
        (folder / name).mkdir()
    width, height = (WIDTH, HEIGHT) if held % 2 == 0 else (HEIGHT, WIDTH)
    x, y, sides = *CENTRE, (WIDTH, HEIGHT)
    for _ in range(held):  # (x, y) -> (height - y, x)
        x, y, sides = sides[1] - y, x, sides[::-1]
    for frame in PICKED:
        name = f"{ID}_{frame / FPS:.3f}"
        row = [width, height, FOCAL, FOCAL, x, y]
        (folder / f"lowres_wide_intrinsics/{name}.pincam").write_text(" ".join(map(str, row)))
        for source, kind in ((kitchen.rgb(frame), "lowres_wide"), (kitchen.depth(frame), "lowres_depth")):
            with Image.open(source) as image:
                small = np.rot90(np.array(image), -held)
                Image.fromarray(small).save(folder / kind / f"{name}.png", compress_level=0)


Write = Callable[[Kitchen, Path], None]
FORMATS: dict[str, tuple[PoseFormat, Write]] = {
    "7-Scenes": (SevenScenes(), seven_scenes),
    "ScanNet": (ScanNet(), scannet),
    "nerfstudio": (Nerfstudio(), nerfstudio),
    "ScanNet++": (ScanNetPlusPlus(), scannet_pp),
    "TUM": (TUM(K_px=(FOCAL, FOCAL, *CENTRE)), tum),
    "ARKitScenes": (ARKitScenes(), arkit),
}


def ask(root: Path, *scenes: str) -> None:
    rows = [
        {
            "id": i,
            "dataset": "raw",
            "scene_name": scene,
            "question_type": "object_counting",
            "question": "How many chair(s) are in this room?",
            "ground_truth": "2",
            "options": None,
        }
        for i, scene in enumerate(scenes)
    ]
    root.mkdir(parents=True, exist_ok=True)
    (root / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def posed(tmp_path: Path, poses: PoseFormat, **settings) -> PosedScenes:
    return PosedScenes(str(tmp_path / "raw"), poses, cache=str(tmp_path / "cache"), **settings)


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


@pytest.mark.parametrize("held", [1, 2, 3])
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
        tmp_path, ARKitScenes(), videos=str(tmp_path / "videos"), clock=Clock(tolerance_s=0.05, start_s=-start)
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


# ---- bad input: named, and the rest goes on


def broken(folder: Path, spoil: str) -> None:
    """A tiny ScanNet scene with something wrong."""
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
    if spoil != "no intrinsics":
        K = np.diag([np.nan if spoil == "no focal length" else 8.0, 8, 1, 1])
        K[:2, 2] = (648, 484) if spoil == "other size" else (4, 3)
        np.savetxt(folder / "intrinsic/intrinsic_color.txt", K)


REASONS = {
    "nan": "none of its pictures has a pose that is finite",
    "other size": "its intrinsics are not those of pictures of 8 x 6: focal length and principal point 8, 8, 648, 484",
    "no focal length": "its intrinsics are not those of pictures",
    "stretched": "frame 0: the rotation is off orthonormal",
    "no intrinsics": "intrinsic_color.txt",
}


def test_a_broken_scene_is_named_and_counted_and_the_rest_goes_on(tmp_path, capsys):
    spoilt = [*REASONS, "some nan", "fewer poses", "fine"]
    for spoil in spoilt:
        broken(tmp_path / "raw" / spoil, spoil)
    ask(tmp_path / "raw", *spoilt, "absent")
    source = posed(tmp_path, ScanNet())
    source.prepare()
    said = capsys.readouterr().err
    for spoil, reason in REASONS.items():
        (line,) = (line for line in said.splitlines() if line.startswith(f"raw/{spoil}: left out"))
        assert reason in line
    scenes = source.scenes("test")
    assert totals(source) == {f"raw/{name}": 1 for name in (*REASONS, "absent")}
    assert "raw/some nan: 1 of 3 frames have no pose, and are left out" in said and "raw/fine" not in said
    frames = {scene.name: cameras_of(scene)[0].num_frames for scene in scenes}
    assert frames == {"raw/some nan": 2, "raw/fewer poses": 2, "raw/fine": 3}


def test_a_scene_with_some_of_its_depth_says_that_it_goes_without(tmp_path, capsys):
    for name, count in (("all", 3), ("some", 2), ("none", 0)):
        broken(tmp_path / "raw" / name, "fine")
        shutil.rmtree(tmp_path / "raw" / name / "depth")
        (tmp_path / "raw" / name / "depth").mkdir()
        for i in range(count):
            Image.fromarray(np.full((6, 8), 900, np.uint16)).save(tmp_path / f"raw/{name}/depth/{i}.png")
    ask(tmp_path / "raw", "all", "some", "none")
    source = posed(tmp_path, ScanNet())
    source.prepare()
    said = capsys.readouterr().err
    assert "some/depth/2.png: absent, as are 1 of 3 depth images" in said and said.count("absent") == 1
    assert [scene.depth is not None for scene in source.scenes("test")] == [True, False, False]


def two_scenes(tmp_path: Path) -> tuple[PosedScenes, Path, Path]:
    """Sound ones, with their cameras made; the files of both."""
    broken(tmp_path / "raw/a", "fine")
    broken(tmp_path / "raw/b", "fine")
    ask(tmp_path / "raw", "a", "b")
    source = posed(tmp_path, ScanNet())
    source.prepare()
    a, b = (scene.cameras for scene in source.scenes("test"))
    assert a is not None and b is not None
    return source, a, b


def test_what_was_made_is_not_made_again_and_what_was_cut_short_is(tmp_path, capsys):
    source, a, b = two_scenes(tmp_path)
    whole, made = b.read_bytes(), a.stat().st_mtime_ns
    b.write_bytes(whole[:-40])
    again = posed(tmp_path, ScanNet())
    assert [scene.name for scene in again.scenes("test")] == ["raw/a"] and totals(again) == {"raw/b": 1}
    again.prepare()
    assert b.read_bytes() == whole and a.stat().st_mtime_ns == made
    assert len(again.scenes("test")) == 2 and again.missing == {}

    other = posed(tmp_path, Nerfstudio())  # other settings, another folder
    assert other.folder != source.folder
    other.prepare()
    assert "transforms.json" in capsys.readouterr().err
    assert other.scenes("test") == [] and sum(totals(other).values()) == 2


def test_raw_files_that_changed_are_read_anew(tmp_path):
    source, a, b = two_scenes(tmp_path)
    before, made = a.read_bytes(), b.stat().st_mtime_ns
    pose = np.eye(4)
    pose[0, 3] = 7
    np.savetxt(tmp_path / "raw/a/pose/1.txt", pose)
    source.prepare()
    assert a.read_bytes() != before and b.stat().st_mtime_ns == made
    (tmp_path / "raw/a/intrinsic/intrinsic_color.txt").unlink()  # what can't be read any more is not there
    source.prepare()
    assert [scene.name for scene in source.scenes("test")] == ["raw/b"]


@pytest.mark.parametrize("content", ['{"frames": [5]}', '{"frames": null}', "[]", '{"w": Infinity, "frames": []}'])
def test_a_file_of_another_kind_costs_its_scene_alone(content, tmp_path, capsys):
    (tmp_path / "raw/a").mkdir(parents=True)
    (tmp_path / "raw/a/transforms.json").write_text(content)
    ask(tmp_path / "raw", "a")
    source = posed(tmp_path, Nerfstudio())
    source.prepare()
    assert "raw/a: left out, its cameras can't be had: " in capsys.readouterr().err
    assert source.scenes("test") == [] and totals(source) == {"raw/a": 1}


def test_two_at_once_make_it_once(tmp_path, monkeypatch, capsys):
    for name in ("a", "b", "c"):
        broken(tmp_path / "raw" / name, "fine")
    ask(tmp_path / "raw", "a", "b", "c")
    made: list[str] = []
    real = PosedScenes._make

    def make(self: PosedScenes, name: str) -> None:
        made.append(name)
        time.sleep(0.1)
        real(self, name)

    monkeypatch.setattr(PosedScenes, "_make", make)
    several = [posed(tmp_path, ScanNet()) for _ in range(2)]
    threads = [threading.Thread(target=source.prepare) for source in several]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(made) == ["raw/a", "raw/b", "raw/c"]
    assert "another process reads these poses: waiting for it" in capsys.readouterr().err
    assert [len(source.scenes("test")) for source in several] == [3, 3]


def test_a_video_that_does_not_fit_is_named(tmp_path, capsys, kitchen):
    arkit(kitchen, tmp_path / "raw" / ID)
    ask(tmp_path / "raw", ID)
    source = posed(tmp_path, ARKitScenes(), videos=str(tmp_path / "videos"))
    source.prepare()
    assert source.scenes("test") == [] and totals(source) == {f"raw/{ID}": 1}  # no video at all

    (tmp_path / f"videos/raw/{ID}").mkdir(parents=True)
    Image.new("RGB", (480, 640)).save(tmp_path / f"videos/raw/{ID}/0.png")
    source.prepare()
    assert "480 x 640 pixels, the cameras are for 640 x 480" in capsys.readouterr().err
    assert source.scenes("test") == []


def test_a_split_without_questions_says_where_they_belong(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"val\.jsonl is absent: it holds a question a line"):
        posed(tmp_path, ScanNet()).scenes("val")
