"""import-cameras: the cameras of every format come back in float64, and a wrong convention is noticed."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import main
from commands.import_cameras import import_cameras
from datamodules.cameras_file import read_cameras
from datamodules.video import Video
from evaluation.drawings import camera_map
from tests.datamodules.trajectories.captures import CAPTURES, NAMES, Walk, about_x, colmap, images, nerfstudio, walk
from zoo.cameras import intrinsics_in_pixels
from zoo.cameras.poses import invert_se3
from zoo.errors import InputError

DRAWN: list[Image.Image] = []


@pytest.fixture(autouse=True)
def draw_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """One path is drawn, which takes a third of a second; later scenes get its picture."""

    def draw(*given: object) -> Image.Image:
        if not DRAWN:
            DRAWN.append(camera_map(*given))  # type: ignore[arg-type]
        return DRAWN[0]

    monkeypatch.setattr("commands.import_cameras.camera_map", draw)


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
    for length in (".nan", "0"):
        with pytest.raises(InputError, match="a length is positive and finite"):
            imported(tmp_path, "--meters_per_unit", length)


def edit(file: Path, change: Callable[[str], str]) -> None:
    file.write_text(change(file.read_text()))


def edit_json(file: Path, **values: object) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))


def turn(image: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 3
    with Image.open(image) as opened:
        opened.save(image, exif=exif)


CAMERAS, TRANSFORMS, POSES = "sparse/0/cameras.txt", "transforms.json", "groundtruth.txt"
FISHEYE = "7 OPENCV_FISHEYE 64 48 60 58 30 25 0.1 0.1 0 0\n"
FAULTS: list[tuple[str, Callable[[Path], object], str]] = [  # the format, the damage, and the error
    ("COLMAP", lambda c: shutil.rmtree(c / "sparse"), "none of the known formats"),
    ("COLMAP", lambda c: nerfstudio(c, walk()), "files of COLMAP and Nerfstudio"),
    ("COLMAP", lambda c: (c / CAMERAS).rename(c / "sparse/0/cameras.bin"), "colmap model_converter"),
    ("COLMAP", lambda c: (c / CAMERAS).write_text(FISHEYE), "undistort the images first"),
    ("COLMAP", lambda c: (c / "images/10.jpg").unlink(), "10.jpg is absent"),
    ("COLMAP", lambda c: images(c / "images", size=(48, 64)), "cropped or turned"),
    ("COLMAP", lambda c: (c / CAMERAS).write_text("7 PINHOLE 64 48 60 58 300 25\n"), "its intrinsics don't fit"),
    ("COLMAP", lambda c: (c / "sparse/0/images.txt").write_text("4 1 0 0 0 0 0\n"), "image 4: it is damaged"),
    ("COLMAP", lambda c: edit(c / "sparse/0/images.txt", lambda t: t.replace(" 10.", " 2.")), "2.jpg has two poses"),
    ("COLMAP", lambda c: turn(c / "images/2.jpg"), "EXIF orientation"),
    ("Nerfstudio", lambda c: edit_json(c / TRANSFORMS, frames=[None]), "a list `frames` of objects"),
    ("Nerfstudio", lambda c: edit(c / TRANSFORMS, lambda t: t.replace('"w": 64', '"w": 1e400')), "images/2.jpg needs"),
    ("ScanNet", lambda c: transpose(c / "pose/1.txt"), "frame 1: .*is it transposed"),
    ("ScanNet", lambda c: shutil.copy(c / "color/1.jpg", c / "color/01.jpg"), "a second image with the pose 1.txt"),
    ("Record3D", lambda c: edit_json(c / "metadata", fps=0), "no metadata of Record3D"),
    (
        "Record3D",
        lambda c: edit_json(c / "metadata", frameTimestamps=[3, 1, 2, 0]),
        "times .* don't increase",
    ),
    ("TUM", lambda c: edit(c / "rgb.txt", lambda t: f"nan{t[3:]}"), "nan is not finite"),
    (
        "ARKitScenes",
        lambda c: (c / "lowres_wide/capture_1.000.png").rename(c / "lowres_wide/capture_nan.png"),
        "no time in its name",
    ),
]


def transpose(file: Path) -> None:
    np.savetxt(file, np.loadtxt(file).T)


@pytest.mark.parametrize(("kind", "spoil", "message"), FAULTS, ids=[message for *_, message in FAULTS])
def test_faults_are_named_in_one_line_and_leave_nothing(
    kind: str, spoil: Callable[[Path], object], message: str, tmp_path: Path
) -> None:
    CAPTURES[kind][0](tmp_path / "capture", walk())
    spoil(tmp_path / "capture")
    with pytest.raises(InputError, match=message) as error:
        imported(tmp_path)
    assert "\n" not in str(error.value) and not list(tmp_path.glob("mine/*"))


@pytest.mark.parametrize("name", ["COLMAP", "Nerfstudio", "ScanNet", "TUM"])
def test_files_of_other_editors_are_read(name: str, tmp_path: Path) -> None:
    """Lines that end as on Windows, a mark of the encoding, and a space in the name of an image."""
    write, _, meters = CAPTURES[name]
    write(tmp_path / "capture", scene := walk())
    for file in [*tmp_path.rglob("*.txt"), *tmp_path.rglob("*.json")]:
        if name in ("COLMAP", "Nerfstudio"):
            edit(file, lambda text: text.replace("100.jpg", "100 b.jpg"))
        file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes().replace(b"\n", b"\r\n"))
    for image in tmp_path.rglob("100.jpg"):
        image.rename(image.with_name("100 b.jpg"))
    _, poses, _ = imported(tmp_path, "--meters_per_unit", str(meters))
    assert (poses - torch.from_numpy(scene.world_to_camera())).abs().max() < 1e-12


def test_of_poses_with_one_time_the_first_is_taken(tmp_path: Path, capsys) -> None:
    tum, *_ = CAPTURES["TUM"]
    tum(tmp_path / "capture", scene := walk())
    edit(tmp_path / "capture" / POSES, lambda text: text + "1.0 9 9 9 0 0 0 1\n" + text)
    _, poses, _ = imported(tmp_path)
    assert (poses - torch.from_numpy(scene.world_to_camera())).abs().max() < 1e-12
    assert "groundtruth.txt: several poses have the same time: the first of them is taken" in capsys.readouterr().err


def test_an_existing_scene_is_kept(tmp_path: Path) -> None:
    colmap(tmp_path / "capture", walk())
    imported(tmp_path)
    before = sorted((tmp_path / "mine").rglob("*"))
    with pytest.raises(InputError, match="kitchen exists: move it away"):
        imported(tmp_path)
    assert sorted((tmp_path / "mine").rglob("*")) == before
    for part in (tmp_path / "mine").glob("kitchen*"):
        part.rename(tmp_path / part.name)
    (tmp_path / "mine/kitchen.depth").mkdir()  # of another scene: it would go with the new cameras
    with pytest.raises(InputError, match=r"kitchen\.depth exists: move it away"):
        imported(tmp_path)


@pytest.mark.parametrize("place", ["capture", "notes"])
def test_no_import_removes_a_users_folder(place: str, tmp_path: Path) -> None:
    """Cameras of a video are beside its link, so the scene may be named like a folder: the capture, or notes."""
    colmap(tmp_path / "capture", walk())
    (tmp_path / "notes.depth").mkdir()
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes/today.txt").write_text("dear diary")
    (tmp_path / "clip.mp4").touch()
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    with pytest.raises(InputError, match=f"{place} exists: move it away"):
        import_cameras([str(tmp_path / "capture"), str(tmp_path / place), "--video", str(tmp_path / "clip.mp4")])
    for scene, words in (("new", ["--video", str(tmp_path / "clip.mp4")]), ("other", ["--poses", "TUM"])):
        with pytest.raises(InputError):  # no video, and another format
            import_cameras([str(tmp_path / "capture"), str(tmp_path / scene), *words])
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


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
