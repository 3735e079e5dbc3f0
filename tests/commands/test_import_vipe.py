"""import-cameras reads ViPE's poses by the frames that they name, and makes up no intrinsics unless it is asked to."""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import main
from commands.import_cameras import import_cameras
from datamodules.cameras_file import read_cameras
from datamodules.sources import Conversations
from datamodules.video import Video
from tests.datamodules.clips import numbered_frame, write_video
from zoo.cameras import intrinsics_in_pixels
from zoo.errors import InputError

REPOSITORY = Path(main.__file__).parent
GOLDEN = Path(os.environ.get("ZOO_GOLDEN", Path(__file__).parents[1] / "golden")) / "vipe"
FILES = {each["video"]: each for each in json.loads((GOLDEN / "expected.json").read_text())["files"]}
GAPS = "Ego4d/0a1b2c3d-example.mp4"
FOCAL = ("--poses", "ViPE", "--poses.focal", "1.2")


@pytest.fixture(autouse=True)
def no_drawing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("commands.import_cameras.camera_map", lambda *_: Image.new("RGB", (8, 8)))


@cache
def encoded(frames: int, height: int, width: int) -> bytes:
    with TemporaryDirectory() as folder:
        return write_video(
            Path(folder, "a.mp4"), [numbered_frame(i, height, width) for i in range(frames)]
        ).read_bytes()


def write(video: Path, frames: int, size: tuple[int, int]) -> Path:
    video.parent.mkdir(parents=True, exist_ok=True)
    video.write_bytes(encoded(frames, *size))
    return video


def copied(tmp_path: Path, name: str = GAPS) -> Path:
    """A copy of the capture with a golden file."""
    return shutil.copytree((GOLDEN / FILES[name]["file"]).parents[1], tmp_path / "capture")


def imported(tmp_path: Path, name: str = GAPS, frames: int | None = None, words: tuple[str, ...] = FOCAL) -> Any:
    """The cameras of a golden file, of a video with its number of frames or another one."""
    given = FILES[name]
    video = write(tmp_path / "clip.mp4", frames or given["video_frames"], given["video_height_width"])
    capture = tmp_path / "capture"
    if not capture.exists():
        copied(tmp_path, name)
    import_cameras([str(capture), str(tmp_path / "mine/clip"), "--video", str(video), *words])
    opened = Video(video)
    return read_cameras(tmp_path / "mine/clip.cameras.json", opened.num_frames, opened.height, opened.width)


@pytest.mark.parametrize("name", FILES)
def test_each_pose_is_of_the_frame_that_it_names(name: str, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    poses, K = imported(tmp_path, name)
    expected = FILES[name]["by_inds"]
    known = poses.isfinite().flatten(1).all(1)
    assert known.nonzero().flatten().tolist() == expected["frames_with_a_pose"]
    assert (~known).nonzero().flatten().tolist() == expected["frames_without"]
    true = torch.tensor(expected["world_to_camera"], dtype=torch.float64)
    assert (poses[known] - true).abs().max() < 1e-6
    if name == GAPS:  # the control: the published loader gives frame i the pose of row i
        assert not torch.allclose(poses[4], true[4], atol=1e-3) and torch.allclose(poses[4], true[3], atol=1e-6)
    height, width = FILES[name]["video_height_width"]
    assert torch.allclose(
        intrinsics_in_pixels(K, width, height)[0],
        torch.tensor([[1.2 * width, 0, width / 2], [0, 1.2 * width, height / 2], [0, 0, 1]], dtype=torch.float64),
    )
    out = capsys.readouterr().out
    assert "cameras read as ViPE" in out and "units of length: measure one in meters" in out


def test_frames_after_the_last_pose_have_no_camera_and_another_video_is_an_error(tmp_path: Path) -> None:
    poses, _ = imported(tmp_path, frames=20)
    assert poses.isfinite().flatten(1).all(1).nonzero().max() == 11
    shutil.rmtree(tmp_path / "mine")
    with pytest.raises(InputError, match="11 frames, but frame 11 has a pose"):
        imported(tmp_path, frames=11)
    assert not list(tmp_path.glob("mine/*"))


@pytest.mark.parametrize("words", [(), ("--poses", "ViPE"), ("--poses", "ViPE", "--poses.focal", "-1")])
def test_no_intrinsics_are_made_up(words: tuple[str, ...], tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no intrinsics: .*--poses ViPE --poses\.focal 1\.2") as error:
        imported(tmp_path, words=words)
    assert "\n" not in str(error.value)


def save(**changes: Any) -> Callable[[Path], None]:
    """Write the file with other arrays; None leaves one out."""

    def spoil(file: Path) -> None:
        with np.load(file) as content:
            arrays: dict[str, Any] = dict(content)
        for name, change in changes.items():
            arrays[name] = change(arrays[name]) if callable(change) else change
        np.savez(file, **{name: array for name, array in arrays.items() if array is not None})

    return spoil


FAULTS: list[tuple[Callable[[Path], object], str]] = [
    (save(inds=None), "no arrays `data` and `inds`"),  # of which frames?
    (save(data=lambda data: data[:, :3]), r"`data` \(9, 3, 4\) and `inds` \(9,\), expected \(N, 4, 4\) and \(N,\)"),
    (save(data=lambda data: data[:8]), r"`data` \(8, 4, 4\) and `inds` \(9,\)"),
    (save(inds=lambda inds: inds[:, None]), r"`inds` \(9, 1\), expected"),
    (save(inds=lambda inds: inds[0]), r"`inds` \(\), expected"),
    (save(data=lambda data: data[:0], inds=lambda inds: inds[:0]), r"`data` \(0, 4, 4\)"),
    (save(inds=lambda inds: inds[::-1]), "`inds` are not increasing"),
    (save(inds=lambda inds: inds[::-1].astype(np.uint64)), "`inds` are not increasing"),  # whose differences wrap
    (save(inds=lambda inds: inds + 10**12), "`inds` are not increasing"),
    (save(inds=lambda inds: inds - 1), "`inds` are not increasing"),
    (save(inds=lambda inds: inds + 0.5), "`inds` are not increasing"),
    (save(data=lambda data: data.swapaxes(1, 2)), "row 1: the last row of its pose is .*is it transposed"),
    (save(data=lambda data: 2 * data), "row 0"),
    (save(data=lambda data: data.astype(str)[..., 0]), "expected"),
    (lambda file: file.write_bytes(b"PK\x03\x04"), "no arrays"),
    (lambda file: np.save(file.open("wb"), np.eye(4)), "no arrays"),
    (lambda file: shutil.copy(file, file.with_name("other.npz")), "a scene has one file .npz there"),
]


@pytest.mark.parametrize(("spoil", "message"), FAULTS, ids=range(len(FAULTS)))
def test_faults_are_named_in_one_line(spoil: Callable[[Path], object], message: str, tmp_path: Path) -> None:
    (file,) = copied(tmp_path).glob("pose/*.npz")
    spoil(file)
    with pytest.raises(InputError, match=message) as error:
        imported(tmp_path)
    assert "\n" not in str(error.value) and not list(tmp_path.glob("mine/*"))


def test_all_clips_of_a_release_are_found_by_their_conversations(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    for name, given in FILES.items():
        write(tmp_path / "videos" / name, given["video_frames"], given["video_height_width"])
    write(tmp_path / "videos/k710/100001.mp4", 14, (240, 320))  # another clip of that name
    for part in ("results", "restart/results"):
        words = ["--dataset", "vipe", str(GOLDEN / part), "--output", str(tmp_path / "out"), "--check", "0"]
        import_cameras([*words, "--videos", str(tmp_path / "videos"), "--workers", "1", *FOCAL])
        assert "1 made, 0 kept" in capsys.readouterr().out
    turns = [{"from": "human", "value": "<video>\nWhat?"}, {"from": "gpt", "value": "A car."}]
    rows = [json.dumps({"video": name, "conversations": turns}) for name in FILES]
    (tmp_path / "train.jsonl").write_text("\n".join(rows))
    source = Conversations(str(tmp_path / "train.jsonl"), str(tmp_path / "videos"), str(tmp_path / "out"))
    for scene in source.scenes("train"):
        opened = Video(scene.video)
        assert scene.cameras is not None
        poses, _ = read_cameras(scene.cameras, opened.num_frames, opened.height, opened.width)
        expected = FILES[f"{scene.name}.mp4"]["by_inds"]["frames_with_a_pose"]
        assert poses.isfinite().flatten(1).all(1).nonzero().flatten().tolist() == expected
    with pytest.raises(InputError, match="1 of 1 scenes"):
        import_cameras(["--dataset", "vipe", str(GOLDEN / "results"), "--output", str(tmp_path / "none"), *FOCAL])
    assert "name it with --video" in (tmp_path / "none/vipe.failed.txt").read_text()
    with pytest.raises(InputError, match="no intrinsics"):
        import_cameras(["--dataset", "vipe", str(GOLDEN / "results"), "--output", str(tmp_path / "none")])


@pytest.mark.slow
def test_the_recipe_trains_on_imported_poses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At the tiny scale: two clips once each, with a pose loss for both."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("ZOO_RUN", raising=False)
    visuals, text = tmp_path / "data/visuals/cambrian-s-3m", (REPOSITORY / "recipes/vipe_poses.yaml").read_text()
    text = re.sub(r"datasets: \[.*\]", "datasets: [Ego4d, ssv2]", text.replace("recipe_full", "recipe_tiny"))
    (tmp_path / "vipe_poses.yaml").write_text(text.replace("focal_weight: 0.0", "focal_weight: 0.0\n          dim: 32"))
    for name, given in FILES.items():
        write(visuals / name, given["video_frames"], given["video_height_width"])
    for part in ("results", "restart/results"):
        words = ["--dataset", "vipe", str(GOLDEN / part), "--output", "data/cameras", "--videos", str(visuals), *FOCAL]
        import_cameras([*words, "--check", "0", "--workers", "1"])
    turns = [{"from": "human", "value": "<video>\nWhat?"}, {"from": "gpt", "value": "A car."}]
    rows = [json.dumps({"video": name, "conversations": turns}) for name in FILES]
    (tmp_path / "data/annotations").mkdir()
    (tmp_path / "data/annotations/cambrian_s_3m_vqa.jsonl").write_text("\n".join(rows))
    options = [
        *("--data.num_workers=0", "--data.batch_size=1", "--data.num_frames=4", "--data.pixels.max_pixels=3136"),
        *("--trainer.accumulate_grad_batches=1", "--trainer.devices=1", "--trainer.log_every_n_steps=1"),
        "--gallery.scenes=0",
    ]
    words = ["fit", "--config", "qwen25_vl.yaml", "--config", "vipe_poses.yaml", *options]
    monkeypatch.setattr(sys, "argv", ["main.py", *words])
    main.main()
    (run,) = tmp_path.glob("runs/*")
    (file,) = run.glob("events.out.tfevents.*")
    events = EventAccumulator(str(file))
    events.Reload()
    rotation, focal = (
        [event.value for event in events.Scalars(f"train/PosePrediction/{name}")] for name in ("rotation", "focal")
    )
    assert len(rotation) == 2 and all(value > 0 for value in rotation)
    assert focal == [0.0, 0.0]  # the intrinsics are assumed, so nothing is learned from them
