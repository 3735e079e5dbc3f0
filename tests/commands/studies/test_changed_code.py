"""Results of other code stay, are marked, and are made anew on request."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from commands.study import study
from tests.commands.studies.faked import OF_ROW, ROW, STUDY, FakeMain, results_of, write_study

pytestmark = pytest.mark.usefixtures("read_once")


def test_results_of_other_code_are_marked_and_made_anew_on_request(
    main_py: FakeMain, study_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    document = study_file.with_suffix(".md")
    study([str(study_file), *ROW])
    assert "†" not in document.read_text()
    monkeypatch.setattr("commands.studies.source_code.SourceCode.digest", lambda *_: "other")
    study([str(study_file), *ROW])
    assert main_py.calls == OF_ROW
    text = document.read_text()
    assert "†" not in text and re.search("All of this was made by other code .*--redo_outdated", text)
    study([str(study_file), "--settings", "none", "--jobs", "1"])  # the present code made this
    measured = [line for line in document.read_text().splitlines() if line.startswith("| PRoPE |")]
    assert all("†" in line for line in measured) and "--redo_outdated" in document.read_text()
    guide = study_file.parents[1] / "guide.md"  # of which the study's document has the marks
    guide.write_text("<!-- score: toys / PRoPE / loop / wrong cameras -->new<!-- end -->")
    write_study(study_file, documents=[guide.name])
    monkeypatch.setattr("commands.studies.scores.is_below", lambda *_: True)
    study([str(study_file), "--write"])
    assert "†" not in guide.read_text() and "<<!-- end -->" in guide.read_text()
    write_study(study_file)
    del main_py.calls[:]
    study([str(study_file), *ROW, "--redo_outdated"])
    text = document.read_text()
    assert main_py.calls == OF_ROW and "†" not in text and "other code" not in text


def test_a_new_test_of_a_model_that_other_code_has_trained_keeps_it(
    main_py: FakeMain, study_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = {**STUDY["settings"], "PRoPE": {**STUDY["settings"]["PRoPE"], "tests": []}}
    write_study(study_file, settings=plain, compare=[])
    study([str(study_file), *ROW])
    monkeypatch.setattr("commands.studies.source_code.SourceCode.digest", lambda *_: "other")
    write_study(study_file)
    study([str(study_file), *ROW])
    assert main_py.calls == OF_ROW  # tested, and not trained again
    own, wrong = (each for each in results_of(study_file) if "setting" in each)
    assert own["code"] == wrong["code"]  # of the training


def test_code_that_changes_during_a_training_is_no_result(
    main_py: FakeMain, study_file: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    monkeypatch.setattr("commands.studies.source_code.SourceCode.digest", lambda *_: str(len(main_py.calls)))
    with pytest.raises(SystemExit):
        study([str(study_file), *ROW])
    assert "the code was changed since the study was started" in capsys.readouterr().out
    assert not (study_file.parent / "results/toys.jsonl").exists()
