"""Where a run's cameras come from: the dataset, the geometry encoder, or nowhere."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.cli import Run

RAYS = ("--model.geometry", "DatasetGeometry", "--model.geometry.depth", "false")  # prope.yaml's at the tiny scale


@pytest.mark.slow
def test_only_predict_uses_predicted_cameras_for_a_video_without_cameras(
    run: Run, tmp_path: Path, rooms_root: Path
) -> None:
    run("fit", "--config", "prope.yaml")
    bare = tmp_path / "bare.mp4"
    bare.write_bytes(next(rooms_root.glob("*/rooms/test_*.mp4")).read_bytes())
    asked = ["--data.video", str(bare), "--data.question", "What is the size of this room?"]
    assert "What is the size" in run("predict", *asked)
    without = ["--data.source", "SceneFolder", "--data.source.root", str(copied_without_cameras(rooms_root, tmp_path))]
    with pytest.raises(SystemExit, match="no scene of the test split has cameras"):
        run("test", *without)

    run("fit", "--config", "prope.yaml", *RAYS)  # without a VGGT there are no cameras
    with pytest.raises(SystemExit, match="cameras"):
        run("predict", *asked)


@pytest.mark.slow
def test_predicted_cameras_need_none_in_the_dataset(run: Run, tmp_path: Path, rooms_root: Path) -> None:
    without = ["--data.source", "SceneFolder", "--data.source.root", str(copied_without_cameras(rooms_root, tmp_path))]
    fit = ("fit", "--config", "prope.yaml", "--trainer.max_steps", "1", "--trainer.limit_val_batches", "0")
    run(*fit, "--model.camera_source", "predicted", *without)
    assert "room_size_estimation" in run("test")
    with pytest.raises(SystemExit, match="--model.camera_source predicted needs"):
        run("fit", "--config", "qwen25_vl.yaml", "--model.camera_source", "predicted")


def copied_without_cameras(rooms_root: Path, to: Path) -> Path:
    (source,) = {path.parent.parent for path in rooms_root.glob("*/rooms/test_*.mp4")}
    return Path(shutil.copytree(source, to / "copied", ignore=shutil.ignore_patterns("*.cameras.json")))


def test_an_encoding_without_cameras_is_an_error(run: Run, tmp_path: Path, rooms_root: Path) -> None:
    video = tmp_path / "clip.mp4"
    video.write_bytes(next(rooms_root.glob("*/rooms/test_*.mp4")).read_bytes())
    words = ["--data.video", str(video), "--data.question", "How big?", "--model.allow_untrained", "true"]
    remedy = "put clip.cameras.json beside it, predict them .*, or use"
    with pytest.raises(SystemExit, match=f"^error: clip: {video}: no cameras, .*{remedy}"):
        run("predict", "--config", "prope.yaml", *RAYS, *words)
