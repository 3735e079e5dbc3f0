"""Runs of cambrian_s.yaml and cambrian_p.yaml: LLaVAs with one axis of positions train, are tested, and answer."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.cli import Run

MODEL = ("--config", "cambrian_s.yaml")
CAMERAS = ("--model.camera_encoding", "PRoPE", "--model.camera_encoding.placement")


@pytest.mark.slow
def test_it_trains_is_tested_and_answers(run: Run, tmp_path: Path, rooms_root: Path) -> None:
    run("fit", *MODEL, *CAMERAS, "ChannelRange", "--model.geometry", "null")
    assert "CambrianS" in run("test")
    video, question = str(next(rooms_root.glob("*/rooms/test_*.mp4"))), "What is the size of this room?"
    assert question in run("predict", "--data.video", video, "--data.question", question)


def test_video_tokens_are_refused(run: Run) -> None:
    with pytest.raises(SystemExit) as end:
        run("fit", *MODEL, "--data.frames_as", "video")
    assert "sees each frame as an image: set --data.frames_as image" in str(end.value.code)


@pytest.mark.slow
def test_poses_are_learned_and_reported_and_a_test_needs_none(run: Run, tmp_path: Path, rooms_root: Path) -> None:
    """Errors stand beside those of a camera that never moves. A test may leave the camera tokens out."""
    model = ("--config", "cambrian_p.yaml")
    run("fit", *model, "--model.geometry", "null")
    assert "CambrianP" in run("test")
    (metrics,) = tmp_path.rglob("metrics.json")
    errors = json.loads(metrics.read_text())["objectives"]
    assert {"PosePrediction/rotation_deg", "PosePrediction/unlearned/rotation_deg"} <= errors.keys()
    token = "[LanguageModeling, {class_path: PosePrediction, init_args: {dim: 64, trunk_depth: 2, token: training}}]"
    assert "CambrianP" in run("test", "--model.objectives", token)
    (other,) = tmp_path.rglob("tests/*/metrics.json")
    assert "objectives" not in json.loads(other.read_text())
    video, question = str(next(rooms_root.glob("*/rooms/test_*.mp4"))), "What is the size of this room?"
    assert question in run("predict", "--data.video", video, "--data.question", question)
