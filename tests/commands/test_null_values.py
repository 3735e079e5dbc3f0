"""A null for a parameter that takes none is an error of one line."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

import main
from commands.null_values import accepts_null
from datamodules import Rooms, VideoQADataModule
from zoo import Qwen25VL


@pytest.mark.parametrize(
    ("line", "option"),
    [
        ("fit --config qwen25_vl.yaml --data.num_frames null", "data.num_frames"),
        ("fit --config qwen25_vl.yaml --data.source.size null", "data.source.size"),
        ("fit --config spatial_mllm.yaml --model.fusion.temporal_merge null", "model.fusion.temporal_merge"),
        ("select-frames --data.num_frames null", "data.num_frames"),
    ],
)
def test_a_null_that_no_type_allows(
    line: str, option: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["main.py", *line.split()])
    with pytest.raises(SystemExit) as end:
        main.main()
    assert str(end.value.code) == f"error: {option}: null, but a value is required; leave it out for the default"


def test_a_null_that_the_type_or_the_default_allows() -> None:
    for part, name in (
        (Qwen25VL, "camera_encoding"),
        (VideoQADataModule, "train_sampler"),
        (Rooms, "workers"),
        (str, "any"),
    ):
        assert accepts_null(part, name)
    assert not accepts_null(VideoQADataModule, "num_frames")
