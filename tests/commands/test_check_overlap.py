"""check-overlap: test scenes that are training scenes are found by their names, and by their frames if names differ."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn.functional import interpolate

from callbacks.metrics import training_overlap
from commands.check_overlap import check_overlap, frame_signs
from datamodules.scenes import shared_scenes
from datamodules.video import Video, even_steps
from tests.datamodules.clips import write_video
from zoo.errors import InputError


def frames_of(seed: int, count: int = 24) -> np.ndarray:
    """(count, 96, 128, 3): a camera that moves over a texture."""
    generator = torch.Generator().manual_seed(seed)
    texture = interpolate(torch.rand(1, 3, 12, 40, generator=generator), (96, 512), mode="bilinear")[0]
    shown = [texture[:, :, 16 * i : 16 * i + 128] for i in range(count)]
    return (torch.stack(shown).permute(0, 2, 3, 1) * 255).byte().numpy()


def write_split(root: Path, split: str, videos: dict[str, np.ndarray], missing: Sequence[str] = ()) -> None:
    rows = []
    for name in [*videos, *missing]:
        dataset, _, scene = name.rpartition("/")
        (root / dataset).mkdir(parents=True, exist_ok=True)
        if name in videos:
            write_video(root / f"{name}.mp4", list(videos[name]), options={"crf": "28"})
        row = {"id": f"{split}{len(rows)}", "dataset": dataset, "scene_name": scene}
        rows.append({**row, "question_type": "object_counting", "question": "How many?", "ground_truth": "4"})
    (root / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def words(root: Path, *more: str) -> list[str]:
    return ["--data.source", "SceneFolder", "--data.source.root", str(root), *more]


def test_scenes_that_share_a_name_are_found_without_their_videos(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_split(tmp_path, "train", {"ScanNet/a": frames_of(0)}, missing=["ScanNet/scene0011_00"])
    write_split(tmp_path, "test", {"scannet/b": frames_of(1)}, missing=["scannet/scene0011_01"])
    with pytest.raises(InputError, match="^1 of 2 test scenes are training scenes: leave them out"):
        check_overlap(words(tmp_path))
    printed = capsys.readouterr().out
    assert "scannet/scene0011_01: by name, ScanNet/scene0011_00\n" in printed
    write_split(tmp_path, "test", {"scannet/b": frames_of(1)}, missing=["scannet/scene0015_00"])
    check_overlap(words(tmp_path))  # negative control
    assert "names: 0 of 2 test scenes are among 2 training scenes" in capsys.readouterr().out


def test_scenes_that_share_frames_are_found_under_other_names(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One is of another size and encoded again, one is a clip; the others are of other textures."""
    write_split(tmp_path, "train", {f"x/{seed}": frames_of(seed) for seed in range(3)})
    tests = {
        "y/small": np.ascontiguousarray(frames_of(0)[:, ::2, ::2]),
        "y/clip": frames_of(1)[8:],
        "y/other": frames_of(7),
        "y/blank": np.full((8, 96, 128, 3), 200, np.uint8),
    }
    write_split(tmp_path, "test", tests)
    check_overlap(words(tmp_path))  # the names differ
    capsys.readouterr()
    with pytest.raises(InputError, match="^2 of 4 test scenes are training scenes"):
        check_overlap(words(tmp_path, "--content", "true"))
    printed = capsys.readouterr().out
    assert "y/small: 100% of its frames are in x/0\n" in printed and "of its frames are in x/1\n" in printed
    assert "y/other" not in printed and "y/blank" not in printed


def test_scenes_that_cannot_be_compared_are_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_split(tmp_path, "train", {"x/a": frames_of(0)}, missing=["x/absent"])
    write_split(tmp_path, "test", {"y/b": frames_of(1), "y/c\x1b[31m": frames_of(2)})
    check_overlap(words(tmp_path, "--content", "true"))  # the control
    assert "not compared, without a video: 1 scenes" in capsys.readouterr().out
    for name in ("x/a", "y/c\x1b[31m"):
        whole = (tmp_path / f"{name}.mp4").read_bytes()
        (tmp_path / f"{name}.mp4").write_bytes(whole[:100])
        with pytest.raises(InputError, match="^the frames of 1 scenes can't be compared, see above"):
            check_overlap(words(tmp_path, "--content", "true"))
        (tmp_path / f"{name}.mp4").write_bytes(whole)
        said = capsys.readouterr().err
        assert "left out: " in said and "\x1b" not in said


def test_frames_of_real_videos_are_told_apart(realdata: Path) -> None:
    """Two encodings of one video, and videos of other rooms."""
    scenes = realdata / "scenes"
    names = ("7scenes_redkitchen/video_320x240_30fps.mp4", "7scenes_redkitchen/video_640x480_30fps.mp4")
    videos = [Video(scenes / name) for name in (*names, "vggt_room/room.mp4")]
    videos.append(Video(scenes / "arkitscenes_47334096/frames"))
    small, large, *others = (frame_signs(video.read(even_steps(video.num_frames, 8))) for video in videos)
    assert ((64 - small @ large.T) / 2).amin(1).max() <= 4
    assert min(float((64 - small @ other.T).min() / 2) for other in others) > 15


def test_metrics_say_which_test_scenes_were_training_scenes(tmp_path: Path) -> None:
    assert training_overlap(tmp_path, ["a/1"]) is None  # not known
    (tmp_path / "train_scenes.txt").write_text("b/videos/1\nb/videos/2\n")
    assert training_overlap(tmp_path, ["a/1", "a/3"]) == {"training_scenes": 2, "test_scenes": 2, "shared": ["a/1"]}
    assert shared_scenes(["a/3"], ["b/videos/1"]) == {}
