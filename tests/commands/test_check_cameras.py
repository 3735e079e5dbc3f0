"""check-cameras: the right convention is confirmed, a wrong one named; import-cameras warns of it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from commands.check_cameras import check_cameras, describe_intrinsics, describe_path
from commands.import_cameras import import_cameras
from datamodules import Rooms
from datamodules.cameras_file import read_cameras, write_cameras
from datamodules.scenes import Scene
from datamodules.video import Video
from zoo.cameras import intrinsics_in_pixels, invert_se3
from zoo.errors import InputError


@pytest.fixture(scope="module")
def room(tmp_path_factory: pytest.TempPathFactory) -> Scene:
    rooms = Rooms("local", scenes=(1, 0, 0), size=128, frames=48, root=str(tmp_path_factory.mktemp("rooms")), workers=1)
    rooms.prepare()
    return rooms.scenes("train")[0]


def cameras_of(room: Scene) -> tuple[Video, torch.Tensor, torch.Tensor]:
    video = Video(room.video)
    return video, *read_cameras(str(room.cameras), video.num_frames, video.height, video.width)


def test_cameras_that_explain_the_images(room: Scene, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    check_cameras([str(room.video), "--picture", str(tmp_path / "path.png")])
    printed = capsys.readouterr().out
    assert printed.endswith("the images fit these cameras\n") and "48 with a camera" in printed
    assert "no steps above 10 times the median speed" in printed
    with Image.open(tmp_path / "path.png") as picture:
        assert len(picture.convert("RGB").getcolors(1 << 20)) > 20


def test_the_current_folder_is_a_scene_and_a_picture_that_can_not_be_written_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    folder = tmp_path / "kitchen"
    folder.mkdir()
    for number in range(4):
        Image.new("RGB", (64, 48)).save(folder / f"{number}.png")
    V, K_px = torch.eye(4).repeat(4, 1, 1), torch.tensor([[50.0, 0, 32], [0, 50, 24], [0, 0, 1]]).repeat(4, 1, 1)
    write_cameras(tmp_path / "kitchen.cameras.json", V, K_px, width=64, height=48)
    monkeypatch.chdir(folder)
    check_cameras(["."])
    assert (tmp_path / "kitchen.path.png").exists() and "4 with a camera" in capsys.readouterr().out
    check_cameras([str(folder)])  # a former picture is replaced
    Image.new("RGB", (8, 8)).save("../holiday.png")
    before = Path("../holiday.png").read_bytes()
    with pytest.raises(InputError, match=r"--picture \.\./holiday.png is there already"):
        check_cameras([str(folder), "--picture", "../holiday.png"])
    assert Path("../holiday.png").read_bytes() == before
    for picture in ("x.txt", "absent/x.png"):
        with pytest.raises(InputError, match=f"--picture {picture}: it can't be written"):
            check_cameras([str(folder), "--picture", picture])


@pytest.mark.slow
def test_camera_to_world_given_as_world_to_camera(
    room: Scene, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    video, V, K = cameras_of(room)
    K_px = intrinsics_in_pixels(K, video.width, video.height)
    wrong = tmp_path / "wrong.json"
    write_cameras(wrong, invert_se3(V), K_px, width=video.width, height=video.height)
    with pytest.raises(ValueError, match=r"wrong\.json: not world-to-camera .* read as camera-to-world, OpenCV axes"):
        check_cameras([str(room.video), str(wrong)])
    write_cameras(wrong, V.roll(24, 0), K_px, width=video.width, height=video.height)  # shifted in time
    with pytest.raises(ValueError, match="no convention explains the images"):
        check_cameras([str(room.video), str(wrong)])

    monkeypatch.setattr("commands.import_cameras.camera_map", lambda *_: Image.new("RGB", (8, 8)))  # to draw takes long
    # import-cameras reads ScanNet's layout, in which a pose is camera-to-world
    for name, written in (("right", invert_se3(V)), ("wrong", V)):
        capture = tmp_path / name
        for folder in ("color", "pose", "intrinsic"):
            (capture / folder).mkdir(parents=True)
        matrix = np.eye(4)
        matrix[:3, :3] = K_px[0]
        np.savetxt(capture / "intrinsic/intrinsic_color.txt", matrix)
        for i, (frame, pose) in enumerate(zip(video.read(range(video.num_frames)), written, strict=True)):
            Image.fromarray(frame.permute(1, 2, 0).numpy()).save(capture / f"color/{i}.png")
            np.savetxt(capture / f"pose/{i}.txt", pose)
    import_cameras([str(tmp_path / "wrong"), str(tmp_path / "mine/wrong")])
    assert "warning: the images don't fit these cameras: read as camera-to-world" in capsys.readouterr().err
    dataset = ["--dataset", "scannet", str(tmp_path), "--output", str(tmp_path / "all"), "--workers", "1"]
    import_cameras(dataset)
    warnings = [line for line in capsys.readouterr().err.splitlines() if line.startswith("warning")]
    assert len(warnings) == 1 and warnings[0].startswith("warning: wrong: the images don't fit")


def test_images_without_texture_can_not_tell(room: Scene, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    video, _, _ = cameras_of(room)
    (tmp_path / "gray").mkdir()
    for i in range(video.num_frames):
        Image.new("RGB", (video.width, video.height), (9, 9, 9)).save(tmp_path / f"gray/{i}.png")
    check_cameras([str(tmp_path / "gray"), str(room.cameras)])
    assert "can't tell" in capsys.readouterr().out
    with pytest.raises(ValueError, match=r"no gray\.cameras\.json beside it"):
        check_cameras([str(tmp_path / "gray")])


def test_speed_jumps_and_intrinsics() -> None:
    V = torch.eye(4, dtype=torch.float64).repeat(11, 1, 1)
    V[:, 0, 3] = -0.1 * torch.arange(11)  # 0.1 m per frame
    V[6:, 0, 3] -= 5
    path, speed, rotation, jumps = describe_path([*range(5), *range(10, 16)], V, [i / 10 for i in range(20)])
    assert "6 m long, within 6 x 0 x 0 m" in path and "1 m/s in the median, 51 at most, at frame 10" in speed
    assert "0 deg/s" in rotation and jumps.endswith(": 10 to 11 (5.1 m)") and " 1 steps" in jumps
    K = torch.diag(torch.tensor([0.5, 0.5, 1.0])).expand(2, 3, 3)
    (line,) = describe_intrinsics(K)
    assert "90.0 x 90.0 degrees, principal point +0.0% and +0.0% off center, one for all frames" in line
    off = K.clone()
    off[:, 0, 2] = 0.2
    assert "unusual" in describe_intrinsics(off)[1]
