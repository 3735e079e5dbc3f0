"""A released model's layout with random weights: it loads, sees a real video, answers, and takes a step of LoRA."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
DATA = Path(os.environ.get("ZOO_REALDATA", "absent"))
VIDEO, PROCESSOR = DATA / "scenes/vggt_room/room.mp4", DATA / "qwen2.5-vl"
pytestmark = pytest.mark.skipif(not VIDEO.exists(), reason="no video in ZOO_REALDATA")


def dry_run(folder: Path, *more: str) -> dict[str, Any]:
    words = ["-m", "benchmarks.dry_run", "--video", str(VIDEO), "--processor", str(PROCESSOR), "--folder", str(folder)]
    done = subprocess.run([sys.executable, *words, *more], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert not list(folder.iterdir())  # the weights are removed
    found: dict[str, Any] = json.loads(done.stdout[done.stdout.index("{\n") :])
    assert len(found["answers"]) == 2 and all(found["answers"])
    assert math.isfinite(found["loss"]) and 0 < found["gradient"] < math.inf
    return found


@pytest.mark.slow
@pytest.mark.parametrize("model, tokens", [("spatial_mllm", 2), ("vg_llm", 4)])
def test_a_tiny_model(tmp_path: Path, model: str, tokens: int) -> None:
    found = dry_run(tmp_path, "--tiny", "--model", model)
    assert found["adapters"] == 2 * 2 * 7  # of two layers
    assert found["visual tokens"] % tokens == 0  # of two merged pairs of frames, or four stills


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("model, billions", [("spatial_mllm", 4.97), ("vg_llm", 4.71)])
def test_a_model_of_five_billion_parameters_in_12_gb(tmp_path: Path, model: str, billions: float) -> None:
    found = dry_run(tmp_path, "--model", model)
    assert found["parameters"] / 1e9 == pytest.approx(billions, abs=0.005)  # as benchmarks/README.md has them
    assert found["adapters"] == 2 * 36 * 7
    assert found["GB at the peak"] < 13
