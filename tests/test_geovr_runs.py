"""A run of geovr_tiny.yaml: its export is a plain Qwen3-VL, which answers without the teacher."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cli import Run
from tests.zoo.released import read_release
from zoo import SpatialVLM
from zoo.checkpoints import export_model
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
    export_model(SpatialVLM.from_pretrained(tmp_path / "runs/geovr"), tmp_path / "exported")
    model = SpatialVLM.from_pretrained(tmp_path / "exported")
    assert list(model.objectives) == ["LanguageModeling"]
    stock = {name for name, _ in model.backbone.vlm.named_parameters()}
    assert {name for name in read_release(tmp_path / "exported") if name != "lm_head.weight"} <= stock
    assert "eacher" not in (tmp_path / "exported/config.json").read_text()
