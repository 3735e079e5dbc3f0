"""A study of one step per training with the real main.py, on this machine and through submitit."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from commands.study import study
from tests.commands.studies.faked import write_study
from tests.conftest import ROOMS

OPTIONS = {
    "trainer.max_steps": 1,
    "trainer.limit_val_batches": 0,
    "data.num_frames": 4,
    "data.batch_size": 2,
    "data.source.scenes": list(ROOMS),
    **{f"model.backbone.{name}": value for name, value in {"layers": 2, "hidden_size": 64, "heads": 2}.items()},
    **{"model.backbone.key_value_heads": 1, "model.backbone.vision_hidden_size": 32},
}
SETTINGS = {"none": {"configs": ["qwen25_vl.yaml"]}, "wrong": {"configs": ["qwen25_vl.yaml"], "data.no_option": 1}}


@pytest.mark.slow
@pytest.mark.parametrize("executor", ["local", "submitit_local"])
def test_a_study_trains_and_tests_and_names_what_main_py_refuses(
    executor: str, tmp_path: Path, rooms_root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    path = write_study(
        tmp_path / "studies/tiny.yaml",
        **{"seeds": [0], "columns": {"": {}}, "score": "room_size_estimation", "compare": [], "settings": SETTINGS},
        options={**OPTIONS, "data.source.root": str(rooms_root)},
        tests={},
    )
    with pytest.raises(SystemExit, match="1 of 2 trainings have failed"):
        study([str(path), "--executor", executor, "--jobs", "2"])
    assert "wrong, seed 0: failed: error: data.no_option: there is no such option" in capsys.readouterr().out
    folder = tmp_path / "runs/studies/tiny/none-0"
    questions, result = map(json.loads, (tmp_path / "studies/results/tiny.jsonl").read_text().splitlines())
    metrics = json.loads((folder / "metrics.json").read_text())
    assert result["scores"]["macro"] == pytest.approx(metrics["all"]["macro"], abs=1e-5)
    assert len(questions["ids"]) == len(result["question_scores"]) == metrics["counts"]["questions"] == ROOMS[2]
    assert metrics["baselines"].keys() == {"constant", "text"}  # too few training rooms for a regression on cameras
    assert result["baselines"]["text"]["macro"] == pytest.approx(metrics["baselines"]["text"]["all"]["macro"], abs=1e-5)
    assert "| best constant answer |" in path.with_suffix(".md").read_text()
    assert path.with_suffix(".png").stat().st_size
    if executor == "submitit_local":
        assert list((tmp_path / "runs/studies/tiny/submitit").glob("*_result.pkl"))
