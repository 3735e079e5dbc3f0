"""The profiler's table: parts of a step that add up to its time."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import pytest

import main
from callbacks import StepTimes
from zoo.model import SpatialVLM


def test_the_parts_of_a_step_add_up_to_its_time(
    tmp_path: Path, rooms_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a pause in one part."""
    monkeypatch.chdir(tmp_path)
    profilers: list[StepTimes] = []
    tower = type(SpatialVLM().backbone.vlm.model.visual)
    forward, summary = tower.forward, StepTimes.summary

    def paused(self: Any, *arguments: Any, **more: Any) -> Any:
        time.sleep(0.5)
        return forward(self, *arguments, **more)

    def kept(self: StepTimes) -> str:
        profilers.append(self)
        return summary(self)

    monkeypatch.setattr(tower, "forward", paused)
    monkeypatch.setattr(StepTimes, "summary", kept)
    words = ["--config", "qwen25_vl.yaml", "--data.source.root", str(rooms_root), "--data.source.scenes", "[6,2,3]"]
    words += ["--trainer.profiler", "callbacks.StepTimes", "--trainer.max_steps", "1", "--data.num_workers", "0"]
    words += ["--data.num_frames", "4", "--trainer.limit_val_batches", "0", "--data.batch_size", "1"]
    monkeypatch.setattr(sys, "argv", ["main.py", "fit", *words])
    main.main()
    seconds, text = profilers[0].seconds(), summary(profilers[0])
    batch = profilers[0].recorded_durations["run_training_batch"]
    assert len(batch) == 1 and all(each > 0 for each in seconds.values())
    assert sum(seconds.values()) - seconds["data"] == pytest.approx(batch[0])
    assert seconds["vision"] > 0.5 and "| vision |" in text
    assert "geometry" not in seconds  # the model has none
