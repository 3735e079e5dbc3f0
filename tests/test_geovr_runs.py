"""A run of geovr_tiny.yaml: its export is a plain Qwen3-VL, which answers without the teacher."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import pytest
import torch
import yaml
from transformers import Qwen3VLForConditionalGeneration

import main
from tests.cli import Run, weights
from zoo.objectives.teacher_model import Teacher


def with_token(token: str) -> str:
    """The objectives of geovr_tiny.yaml with another use of the camera token in prompts."""
    content = yaml.safe_load((Path(main.__file__).parent / "configs/geovr_tiny.yaml").read_text())
    objectives = content["model"]["init_args"]["objectives"]
    (pose,) = (each for each in objectives if each["class_path"] == "TeacherPose")
    pose["init_args"]["token"] = token
    return json.dumps(objectives)


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
    last = ("test", "--ckpt_path", "runs/geovr/checkpoints/last.ckpt")
    assert "Qwen3VL" in run(*last, sized=False)
    test_with = partial(run, *last, "--config", "runs/geovr/config.yaml", sized=False)
    assert "questions" in test_with("--model.objectives", with_token("always"))
    with pytest.raises(SystemExit) as end:
        test_with("--model.objectives", with_token("none"))  # the control: a model without the learned token
    assert "unexpected ['model.objectives.TeacherPose.token']" in str(end.value.code)
    said = run("export", "--out", "exported", "--layout", "official", sized=False, logged=True)
    assert "exported, in the official layout" in said
    stock, found = Qwen3VLForConditionalGeneration.from_pretrained("exported", output_loading_info=True)
    assert not any(found.values()), found
    trained = weights(tmp_path / "runs/geovr")
    for name, tensor in stock.named_parameters():
        assert torch.equal(tensor, trained[f"model.backbone.vlm.{name}"]), name
    assert "eacher" not in Path("exported/config.json").read_text()
