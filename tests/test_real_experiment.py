"""The real experiment's command lines, with weights and videos that are small: VSI-Bench has no cameras."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import save_file

import main
from tests.zoo.geometry.official import hash_weights, tiny_config
from zoo import SpatialVLM, TinyQwen25VL
from zoo.checkpoints import export_model
from zoo.geometry.vggt import CameraHead

REAL = ("scale_3b.yaml", "data_vsibench.yaml")
Run = Callable[..., None]


@pytest.fixture
def run(tmp_path: Path, rooms_root: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs main.py in a folder with weights/ and data/vsibench/ as the README has them, of the least size."""
    monkeypatch.chdir(tmp_path)
    small = TinyQwen25VL(layers=1, hidden_size=64, heads=2, key_value_heads=1, vision_hidden_size=32)
    export_model(SpatialVLM(backbone=small), tmp_path / "weights/qwen2.5-vl-3b")
    vggt = {**tiny_config(), "camera_head": {"dim_in": 64}}
    monkeypatch.setattr("zoo.geometry.vggt.model.VGGT_1B", vggt)
    (tmp_path / "weights/vggt-1b").mkdir()
    save_file(hash_weights(vggt), tmp_path / "weights/vggt-1b/model.safetensors")
    (rooms,) = {path.parent.parent for path in rooms_root.glob("*/rooms/test_*.mp4")}
    bare = shutil.ignore_patterns("*.cameras.json", "*.depth", "val_*")
    shutil.copytree(rooms, tmp_path / "data/vsibench", ignore=bare)
    weights = [*("--model.backbone.path", "weights/qwen2.5-vl-3b"), *("--model.geometry.path", "weights/vggt-1b")]
    # a processor of this machine, and frames that stay as small as they are
    least = [*("--trainer.accelerator", "cpu", "--data.num_workers", "0"), *("--data.pixels.min_pixels", "784")]

    def call(command: str, model: str, *words: str) -> None:
        monkeypatch.delenv("ZOO_RUN", raising=False)
        configs = [word for name in (model, *REAL) for word in ("--config", name)]
        monkeypatch.setattr(sys, "argv", ["main.py", command, *configs, *weights, *least, *words])
        main.main()

    return call


@pytest.mark.slow
def test_prope_on_videos_without_cameras(run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    heads: list[CameraHead] = []
    forward = CameraHead.forward
    monkeypatch.setattr(CameraHead, "forward", lambda self, *each: (heads.append(self), forward(self, *each))[1])
    few = [*("--data.num_frames", "4", "--data.question_types", "[room_size_estimation]")]
    with pytest.raises(SystemExit, match="was not trained into the released weights: give --ckpt_path"):
        run("test", "prope.yaml", *few)
    with pytest.raises(SystemExit, match="VSIBench has no training split"):
        run("fit", "prope.yaml", *few)
    scenes = ["--data.source", "SceneFolder", "--data.source.root", "data/vsibench"]
    steps = ["--trainer.max_steps", "1", "--trainer.accumulate_grad_batches", "1", "--trainer.limit_val_batches", "0"]
    run("fit", "prope.yaml", *few, *scenes, *steps)
    assert heads
    heads.clear()
    (checkpoint,) = tmp_path.glob("runs/*/checkpoints/last.ckpt")
    run("test", "prope.yaml", *few, "--ckpt_path", str(checkpoint))
    (predictions,) = tmp_path.rglob("predictions.jsonl")
    lines = [json.loads(line) for line in predictions.read_text().splitlines()]
    assert len(lines) == len(heads) == 3 and not any(line["error"] for line in lines)
    with pytest.raises(SystemExit, match="no scene of the test split has cameras"):
        run("test", "prope.yaml", *few, "--ckpt_path", str(checkpoint), "--model.camera_source", "dataset")


@pytest.mark.slow
def test_models_without_cameras_take_no_notice(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(CameraHead, "forward", lambda *_: pytest.fail("cameras that nobody reads"))
    few = [*("--data.num_frames", "4", "--data.question_types", "[room_size_estimation]")]
    run("test", "spatial_mllm.yaml", *few, "--model.allow_untrained", "true", "--trainer.default_root_dir", "here")
    metrics = json.loads(Path("here/metrics.json").read_text())
    assert metrics["counts"]["questions"] == 3
