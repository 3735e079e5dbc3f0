"""A study of one step per training with the real main.py, on this machine and through submitit."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

import main
from tests.commands.studies.faked import write_study
from tests.conftest import ROOMS

OPTIONS = {
    "trainer.max_steps": 1,
    "trainer.limit_val_batches": 0,
    "data.num_frames": 4,
    "data.batch_size": 2,
    "data.source.scenes": list(ROOMS),
}
SETTINGS = {"none": {"configs": ["qwen25_vl.yaml"]}, "wrong": {"configs": ["qwen25_vl.yaml"], "data.no_option": 1}}


@pytest.mark.parametrize("executor", ["local", pytest.param("submitit_local", marks=pytest.mark.slow)])
def test_a_study_trains_and_tests_and_names_what_main_py_refuses(
    executor: str, tmp_path: Path, rooms_root: Path
) -> None:
    path = write_study(
        tmp_path / "studies/tiny.yaml",
        **{"seeds": [0], "columns": {"": {}}, "score": "room_size_estimation", "compare": [], "settings": SETTINGS},
        options={**OPTIONS, "data.source.root": str(rooms_root)},
        tests={},
        constant=True,
    )
    command = [sys.executable, str(Path(main.__file__)), "study", str(path), "--executor", executor, "--jobs", "2"]
    ended = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert ended.returncode == 1 and "1 of 2 trainings have failed" in ended.stderr, ended.stdout + ended.stderr
    assert "wrong, seed 0: failed: error: data.no_option: there is no such option" in ended.stdout
    folder = tmp_path / "runs/studies/tiny/none-0"
    questions, result = map(json.loads, (tmp_path / "studies/results/tiny.jsonl").read_text().splitlines())
    metrics = json.loads((folder / "metrics.json").read_text())
    assert result["scores"]["macro"] == pytest.approx(metrics["all"]["macro"], abs=1e-5)
    assert len(questions["ids"]) == len(result["question_scores"]) == metrics["counts"]["questions"] == ROOMS[2]
    assert "| best constant answer |" in path.with_suffix(".md").read_text()
    assert path.with_suffix(".png").stat().st_size
    if executor == "submitit_local":
        assert list((tmp_path / "runs/studies/tiny/submitit").glob("*_result.pkl"))
