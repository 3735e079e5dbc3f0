"""`study --verify` compares the first losses of the present code with those recorded with the trainings."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import main
from callbacks.baselines.mark import NAMES
from commands.studies import processes
from commands.studies.executors import LocalExecutor
from commands.study import study
from tests.commands.studies.faked import FakeMain, write_study
from tests.commands.studies.test_real_study import OPTIONS

Code = Callable[[str], None]


@pytest.fixture
def code(monkeypatch: pytest.MonkeyPatch) -> Code:
    """Pretends another digest of the present code."""
    return lambda digest: monkeypatch.setattr("commands.studies.source_code.SourceCode.digest", lambda *_: digest)


def lines_of(path: Path, key: str) -> list[dict]:
    lines = map(json.loads, (path.parent / f"results/{path.stem}.jsonl").read_text().splitlines())
    return [line for line in lines if key in line]


def marked(path: Path) -> set[str]:
    """The settings with a mark in the first table; all if the document says so."""
    study([str(path), "--write"])
    text = path.with_suffix(".md").read_text()
    rows = [line for line in text.partition("## ")[0].splitlines() if line.startswith("| ")][2:]
    rows = [row for row in rows if row.split(" | ")[0].lstrip("| ") not in NAMES.values()]
    is_marked = "All of this was made by other code" in text
    return {row.split(" | ")[0].lstrip("| ") for row in rows if is_marked or "†" in row}


@pytest.mark.usefixtures("read_once")
def test_equal_losses_of_one_seed_let_all_stand(main_py: FakeMain, study_file: Path, code: Code, capsys) -> None:
    code("former")
    study([str(study_file), "--jobs", "1"])
    assert lines_of(study_file, "setting")[0]["first_losses"] == main_py.losses
    code("present")
    assert marked(study_file) == {"none", "PRoPE"}
    main_py.calls.clear()
    main_py.losses = [loss + 5e-5 for loss in main_py.losses or []]
    study([str(study_file), "--verify", "--jobs", "1"])
    assert main_py.calls == ["fit none-loop-0", "fit PRoPE-loop-0", "fit none-local-0"]  # no seed 1, and no test
    assert "PRoPE, loop, seed 0 and 1 more: the same losses" in capsys.readouterr().out
    assert marked(study_file) == set() and "†" not in study_file.with_suffix(".md").read_text()
    verified = lines_of(study_file, "verified")
    assert [len(line["verified"]) for line in verified] == [2, 2, 2]
    assert {(line["trained_with"], line["code"]) for line in verified} == {("former", "present")}
    assert all(line["version"] and line["first_losses"] == main_py.losses for line in verified)
    assert (
        "the first losses of 3 trainings, one seed of each setting, are unchanged, so the results of 6 stand"
        in study_file.with_suffix(".md").read_text()
    )
    study([str(study_file), "--verify"])  # nothing is left to compare
    study([str(study_file), "--redo_outdated"])
    assert len(main_py.calls) == 3
    code("later")
    assert marked(study_file) == {"none", "PRoPE"}


@pytest.mark.usefixtures("read_once")
def test_other_losses_are_named_and_their_mark_stays(main_py: FakeMain, study_file: Path, code: Code, capsys) -> None:
    code("former")
    study([str(study_file), "--jobs", "1", "--seeds", "0"])
    code("present")
    study([str(study_file), "--verify", "--settings", "none", "--seeds", "0"])
    capsys.readouterr()
    main_py.losses = [5.0, 4.5002, 4.25, 4.125, 4.0625]
    with pytest.raises(SystemExit, match="1 of 3 trainings are not verified"):
        study([str(study_file), "--verify", "--seeds", "0"])
    assert "[1/1] PRoPE, loop, seed 0: step 2: the loss is 4.5002, and was 4.5\n" in capsys.readouterr().out
    assert marked(study_file) == {"PRoPE"}
    main_py.broken = "--model.camera_encoding=PRoPE"
    with pytest.raises(SystemExit):
        study([str(study_file), "--verify", "--seeds", "0"])
    assert "PRoPE, loop, seed 0: error: --model.camera_encoding=PRoPE is wrong" in capsys.readouterr().out


@pytest.mark.usefixtures("read_once")
def test_results_without_recorded_losses_stay_marked(main_py: FakeMain, study_file: Path, code: Code, capsys) -> None:
    main_py.losses = None
    code("former")
    study([str(study_file), "--seeds", "0", "--jobs", "1"])
    code("present")
    main_py.calls.clear()
    study([str(study_file), "--verify"])
    line = "\n3 can't be verified, since their losses were not recorded, of the settings none; PRoPE\n"
    assert line in capsys.readouterr().out and not main_py.calls
    assert marked(study_file) == {"none", "PRoPE"}


OPTIMIZER = """from torch.optim import AdamW


class Own(AdamW):
    def __init__(self, parameters):
        super().__init__(parameters, eps=0.01)
"""


@pytest.mark.slow
def test_code_that_changes_the_losses_is_refused(
    tmp_path: Path, rooms_root: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    """With trainings in this thread, by an optimizer of the user's."""

    def main_py(log: Path, at_once: int, *words: str, **_: object) -> None:
        monkeypatch.delitem(sys.modules, "own", raising=False)
        monkeypatch.setattr(sys, "argv", ["main.py", *words])
        main.main()

    def write(text: str) -> None:
        (tmp_path / "own.py").write_text(text)

    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    monkeypatch.setattr(processes, "main_py", main_py)
    monkeypatch.setattr(LocalExecutor, "execute", lambda _, jobs: ((job, job.prepare() or job()) for job in jobs))
    write(OPTIMIZER)
    options = {**OPTIONS, "trainer.max_steps": 6, "data.source.root": str(rooms_root)}
    settings = {"own": {"configs": ["qwen25_vl.yaml"], "model.optimizer": "own.Own"}}
    kept = {"tests": {}, "columns": {"": {}}, "compare": [], "seeds": [0], "score": "room_size_estimation"}
    path = write_study(tmp_path / "studies/tiny.yaml", options=options, settings=settings, **kept)
    study([str(path), "--jobs", "1"])
    assert marked(path) == set()
    write(OPTIMIZER.replace("0.01", "1 / 100"))
    assert marked(path) == {"own"}
    study([str(path), "--verify", "--jobs", "1"])
    assert marked(path) == set()
    write(OPTIMIZER.replace("0.01", "1e-8"))
    with pytest.raises(SystemExit, match="1 of 1 trainings are not verified"):
        study([str(path), "--verify", "--jobs", "1"])
    assert re.search(r"own, seed 0: step [2-5]: the loss is [\d.]+, and was [\d.]+\n", capsys.readouterr().out)
    assert marked(path) == {"own"}
    assert len(lines_of(path, "verified")) == 1
