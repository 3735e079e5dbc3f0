"""A run of geovr_tiny.yaml: its export is a plain Qwen3-VL, which answers without the teacher."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import Qwen3VLForConditionalGeneration

from tests.cli import Run, weights
from zoo.scene_encoding.teacher import Teacher


@pytest.mark.slow
def test_a_run_learns_from_a_teacher_and_forgets_it(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[list[int]] = []
    prepare = Teacher.__call__

    def record(self: Teacher, scenes: list, patch_size: int) -> list:
        shown.append([list(scene.frame_indices) for scene in scenes][0])
        return prepare(self, scenes, patch_size)

    monkeypatch.setattr(Teacher, "__call__", record)
    run("fit", "--config", "geovr_tiny.yaml", "--trainer.default_root_dir", "runs/geovr")
    assert len(shown) == 2 and all(indices[::2] == indices[1::2] for indices in shown)  # each view twice
    monkeypatch.setattr(Teacher, "outline", property(lambda self: pytest.fail("built")))
    monkeypatch.setattr(Teacher, "encoder", property(lambda self: pytest.fail("built")))
    assert "Qwen3VL" in run("test", "--ckpt_path", "runs/geovr/checkpoints/last.ckpt", sized=False)
    said = run("export", "--out", "exported", "--layout", "official", sized=False, logged=True)
    assert "exported, in the official layout" in said
    stock, found = Qwen3VLForConditionalGeneration.from_pretrained("exported", output_loading_info=True)
    assert not any(found.values()), found
    trained = weights(tmp_path / "runs/geovr")
    for name, tensor in stock.named_parameters():
        assert torch.equal(tensor, trained[f"model.backbone.vlm.{name}"]), name
    assert "eacher" not in Path("exported/config.json").read_text()
