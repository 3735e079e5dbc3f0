"""import-cameras: the cameras of every format come back in float64, and a wrong convention is noticed."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import main
from commands.import_cameras import import_cameras
from datamodules.cameras_file import read_cameras
from datamodules.video import Video
from tests.datamodules.trajectories.captures import CAPTURES, NAMES, Walk, about_x, colmap, images, nerfstudio, walk
from zoo.cameras import intrinsics_in_pixels
from zoo.cameras.poses import invert_se3
from zoo.errors import InputError


def read(scene: Path) -> tuple[Video, torch.Tensor, torch.Tensor]:
    video = Video(scene)
    poses, K = read_cameras(f"{scene}.cameras.json", video.num_frames, video.height, video.width)
    return video, poses, intrinsics_in_pixels(K, video.width, video.height)


def imported(tmp_path: Path, *words: str) -> tuple[Video, torch.Tensor, torch.Tensor]:
    import_cameras([str(tmp_path / "capture"), str(tmp_path / "mine/kitchen"), *words])
    return read(tmp_path / "mine/kitchen")


@pytest.mark.parametrize("name", CAPTURES)
def test_the_cameras_of_every_format_come_back(name: str, tmp_path: Path, capsys) -> None:
    write, K_px, meters = CAPTURES[name]
    write(tmp_path / "capture", scene := walk())
    words = ["--meters_per_unit", str(meters)]
    if name == "ARKitScenes":  # the walk turns freely: which side is up has no meaning
        words += ["--poses", "ARKitScenes", "--poses.upright", "false"]
    video, poses, K = imported(tmp_path, *words)
    expected = torch.from_numpy(scene.world_to_camera())
    assert poses.dtype == torch.float64 and (poses - expected).abs().max() < 1e-12
    assert not torch.allclose(poses, invert_se3(expected), atol=0.1)  # negative control: read as the inverse
    opengl = torch.diag(torch.tensor([1.0, -1, -1, 1], dtype=torch.float64))
    assert not torch.allclose(poses, opengl @ expected, atol=0.1)  # negative control: the other axes
    assert torch.allclose(K[:, [0, 1, 0, 1], [0, 1, 2, 2]], torch.tensor(K_px, dtype=torch.float64), atol=1e-12)
    colors = [int(frame[0].float().mean().round()) for frame in video.read(range(len(NAMES)))]
    assert np.allclose(colors, [0, 40, 80, 120], atol=3)  # in order, and without other images
    assert f"{len(NAMES)} cameras read as {name}" in capsys.readouterr().out
    with Image.open(tmp_path / "mine/kitchen.path.png") as picture:
        assert len(picture.convert("RGB").getcolors(1 << 20)) > 20


@pytest.mark.parametrize("mistake", ["OpenGL axes", "camera-to-world"])
def test_a_capture_with_another_convention_gives_other_cameras(mistake: str, tmp_path: Path) -> None:
    scene, wrong = walk(), walk()
    if mistake == "OpenGL axes":
        wrong = Walk(about_x(scene.quaternions), scene.centers)
    else:
        inverse = scene.world_to_camera()
        wrong = Walk(scene.quaternions * (1, -1, -1, -1), inverse[:, :3, 3])
    for name in ("right", "wrong"):
        colmap(tmp_path / name, scene if name == "right" else wrong)
        import_cameras([str(tmp_path / name), str(tmp_path / f"mine/{name}"), "--meters_per_unit", "0.5"])
    (_, right, _), (_, other, _) = read(tmp_path / "mine/right"), read(tmp_path / "mine/wrong")
    relative, expected = right @ invert_se3(right[:1]), torch.from_numpy(scene.world_to_camera())
    assert torch.allclose(relative, expected @ invert_se3(expected[:1]), atol=1e-12)
    assert not torch.allclose(other @ invert_se3(other[:1]), relative, atol=0.1)


def test_without_a_length_the_unit_is_asked_for(tmp_path: Path, capsys) -> None:
    colmap(tmp_path / "capture", scene := walk())
    _, poses, _ = imported(tmp_path)
    assert torch.allclose(poses[:, :3, 3], 2 * torch.from_numpy(scene.world_to_camera())[:, :3, 3], atol=1e-12)
    assert "--meters_per_unit" in capsys.readouterr().out


CAMERAS = "sparse/0/cameras.txt"
FAULTS = {
    "none of the known formats": lambda capture: shutil.rmtree(capture / "sparse"),
    "files of COLMAP and Nerfstudio": lambda capture: nerfstudio(capture, walk()),
    "colmap model_converter": lambda capture: (capture / CAMERAS).rename(capture / "sparse/0/cameras.bin"),
    "undistort the images first": lambda capture: (capture / CAMERAS).write_text(
        "7 OPENCV_FISHEYE 64 48 60 58 30 25 0.1 0.1 0 0\n"
    ),
    "10.jpg is absent": lambda capture: (capture / "images/10.jpg").unlink(),
    "cropped or turned": lambda capture: images(capture / "images", size=(48, 64)),
    "its intrinsics don't fit": lambda capture: (capture / CAMERAS).write_text("7 PINHOLE 64 48 60 58 300 25\n"),
    "image 4: it is damaged": lambda capture: (capture / "sparse/0/images.txt").write_text("4 1 0 0 0 0 0\n"),
    "EXIF orientation": lambda capture: turn(capture / "images/2.jpg"),
}


def turn(image: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 3
    with Image.open(image) as opened:
        opened.save(image, exif=exif)


@pytest.mark.parametrize("message", FAULTS)
def test_faults_are_named_in_one_line_and_leave_nothing(message: str, tmp_path: Path) -> None:
    colmap(tmp_path / "capture", walk())
    FAULTS[message](tmp_path / "capture")
    with pytest.raises(InputError, match=message):
        imported(tmp_path)
    assert not list((tmp_path / "mine").glob("*.json"))


def test_an_existing_scene_is_kept(tmp_path: Path) -> None:
    colmap(tmp_path / "capture", walk())
    imported(tmp_path)
    before = sorted((tmp_path / "mine").rglob("*"))
    with pytest.raises(InputError, match="kitchen exists: remove it"):
        imported(tmp_path)
    assert sorted((tmp_path / "mine").rglob("*")) == before
    for part in (tmp_path / "mine").glob("kitchen*"):
        part.rename(tmp_path / part.name)
    (tmp_path / "mine/kitchen.depth").mkdir()  # of another scene: it would go with the new cameras
    with pytest.raises(InputError, match=r"kitchen\.depth exists: remove it"):
        imported(tmp_path)


@pytest.mark.slow
def test_predict_answers_about_photographs(tmp_path: Path, monkeypatch, capsys) -> None:
    colmap(tmp_path / "capture", walk())
    imported(tmp_path, "--meters_per_unit", "0.5")
    monkeypatch.chdir(tmp_path)
    words = ["--config", "prope.yaml", "--model.allow_untrained", "true", "--data.video", "mine/kitchen"]
    monkeypatch.setattr(sys, "argv", ["main.py", "predict", *words, "--data.question", "How large is this room?"])
    main.main()
    (answers,) = tmp_path.glob("runs/*/answers.jsonl")
    (answer,) = map(json.loads, answers.read_text().splitlines())
    assert set(answer["frames"]) == {0, 1, 2, 3} and answer.get("error") is None
