"""A study goes on after what fails, is killed or is lost."""

from __future__ import annotations

import fcntl
import os
import signal
import threading
import time
from pathlib import Path

import pytest

from commands.study import study
from tests.commands.studies.faked import OF_ROW, ROW, FakeMain, results_of, write_study

pytestmark = pytest.mark.usefixtures("read_once")


@pytest.mark.parametrize("changed", ["nothing", "options", "code"])
def test_a_killed_training_goes_on_unless_its_options_or_the_code_have_changed(
    changed: str, main_py: FakeMain, study_file: Path, capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    main_py.killed = "--model.camera_encoding=PRoPE"
    with pytest.raises(SystemExit, match="1 of 1 trainings have failed"):
        study([str(study_file), *ROW])
    assert "PRoPE, loop, seed 0: failed: interrupted" in capsys.readouterr().out
    main_py.killed = "--nothing"
    if changed == "options":
        write_study(study_file, options={"trainer.max_steps": 4})
    if changed == "code":
        monkeypatch.setattr("commands.studies.source_code.SourceCode.digest", lambda *_: "other")
    study([str(study_file), *ROW])
    is_anew = changed != "nothing"
    assert main_py.calls[1] == ("fit PRoPE-loop-0" if is_anew else "fit PRoPE-loop-0 again")
    assert (results_of(study_file)[1]["fit_s"] is None) != is_anew  # of a part nobody knows the time
    said = "PRoPE, loop, seed 0: begun by other code, so it starts anew"
    assert (said in capsys.readouterr().out) == (changed == "code")


def test_a_failed_training_is_named_and_the_rest_goes_on(main_py: FakeMain, study_file: Path, capsys) -> None:
    main_py.broken = "--model.camera_encoding=PRoPE"
    with pytest.raises(SystemExit, match="1 of 3 trainings have failed"):
        study([str(study_file), "--seeds", "0", "--jobs", "1"])
    printed = capsys.readouterr().out
    assert "PRoPE, loop, seed 0: failed: error: --model.camera_encoding=PRoPE is wrong (all of it in" in printed
    assert [each["setting"] for each in results_of(study_file) if "setting" in each] == ["none", "none"]
    assert study_file.with_suffix(".md").exists()


def test_a_failed_test_costs_no_training(main_py: FakeMain, study_file: Path, capsys) -> None:
    main_py.broken = "--data.perturbation=OtherCameras"
    with pytest.raises(SystemExit, match="1 of 1 trainings have failed"):
        study([str(study_file), *ROW])
    assert [each["test"] for each in results_of(study_file) if "setting" in each] == [""]
    main_py.broken = "--nothing"
    study([str(study_file), *ROW])
    assert main_py.calls == [*OF_ROW, "test wrong-cameras"]
    assert [each["test"] for each in results_of(study_file) if "setting" in each] == ["", "wrong cameras"]


def test_an_incomplete_last_line_is_made_again(main_py: FakeMain, study_file: Path, capsys) -> None:
    study([str(study_file), *ROW])
    path = study_file.parent / "results/toys.jsonl"
    whole = path.read_text()
    path.write_text(whole[:-30])
    study([str(study_file), *ROW])
    assert "line 3, the last, is incomplete" in capsys.readouterr().out
    assert path.read_text() == whole and main_py.calls == OF_ROW  # its test is still in the folder
    path.write_text(whole.replace("\n", "\n<<<<<<< HEAD\n", 1))
    with pytest.raises(ValueError, match="toys.jsonl, line 2: no result of a study"):
        study([str(study_file), *ROW])


def test_a_folder_in_which_another_process_trains_is_left_alone(main_py: FakeMain, study_file: Path, capsys) -> None:
    study([str(study_file), *ROW])
    (study_file.parent / "results/toys.jsonl").unlink()
    Path("runs/studies/toys/PRoPE-loop-0/tests/wrong-cameras/metrics.json").unlink()
    with Path("runs/studies/toys/PRoPE-loop-0.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(SystemExit):
            study([str(study_file), *ROW])
    assert "another process is training in runs/studies/toys/PRoPE-loop-0" in capsys.readouterr().out
    assert main_py.calls == OF_ROW
    study([str(study_file), *ROW])  # the lock is free
    assert main_py.calls == [*OF_ROW, OF_ROW[-1]]


def test_results_whose_questions_are_lost_are_made_again(main_py: FakeMain, study_file: Path, capsys) -> None:
    study([str(study_file), *ROW])
    path = study_file.parent / "results/toys.jsonl"
    path.write_text("".join(line for line in path.read_text().splitlines(True) if '"ids"' not in line))
    study([str(study_file), *ROW])
    assert "the questions of 2 results are missing" in capsys.readouterr().out
    assert {"ids", "setting"} <= {key for each in results_of(study_file) for key in each}


@pytest.mark.usefixtures("interruptible")
def test_an_interrupted_study_has_its_trainings_saved_and_says_how_it_goes_on(
    study_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    """A training, here a script of bash behind a launcher, is asked to end and waited for."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("commands.studies.document.draw", lambda *arguments: arguments[-1].touch())
    launcher = tmp_path / "launcher"
    launcher.write_text('#!/bin/bash\ntrap "sleep 0.2; touch saved; exit 143" TERM\ntouch started\nsleep 60 & wait\n')
    launcher.chmod(0o755)

    def interrupt() -> None:
        while not Path("started").exists():
            time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt, daemon=True).start()
    with pytest.raises(KeyboardInterrupt):
        study([str(study_file), *ROW, "--launcher", str(launcher)])
    assert Path("saved").exists()
    assert "to go on, from the checkpoints: python " in capsys.readouterr().out
    launcher.write_text("#!/bin/bash\nexit 143\n")  # SLURM has asked the training to end, and not the study
    with pytest.raises(SystemExit) as ended:
        study([str(study_file), *ROW, "--launcher", str(launcher)])
    assert ended.value.code == 143 and "to go on, from the checkpoints: python " in capsys.readouterr().out
