"""Runs of cambrian_s.yaml: a LLaVA with one axis of positions trains, is tested, and answers."""

from __future__ import annotations

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
