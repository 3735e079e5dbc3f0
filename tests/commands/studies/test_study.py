"""A study trains what has no result, goes on after any interruption, and names what fails."""

from __future__ import annotations

import fcntl
import json
import os
import re
import signal
import subprocess
import threading
import time
from pathlib import Path

import pytest

from commands.planning.training import Setup, Training
from commands.reports.loaded_runs import load_runs
from commands.studies import processes
from commands.studies.execution import required
from commands.studies.processes import Launch
from commands.studies.reading import read_study
from commands.study import study
from tests.commands.studies.faked import STUDY, FakeMain, write_study
from tests.commands.test_plan import COST
from zoo.errors import InputError
from zoo.tasks.training_cost import BatchSizes

pytestmark = pytest.mark.usefixtures("read_once")

ROW = ["--settings", "PRoPE", "--columns", "loop", "--seeds", "0", "--jobs", "1"]
OF_ROW = ["fit PRoPE-loop-0", "test PRoPE-loop-0", "test test-wrong-cameras"]


def results_of(study_file: Path) -> list[dict]:
    path = study_file.parent / "results/toys.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_all_settings_of_a_seed_and_column_come_together(main_py: FakeMain, study_file: Path, capsys) -> None:
    study([str(study_file), "--dry_run"])
    assert not main_py.calls and not (study_file.parent / "results").exists()
    listed = [line.partition(":")[0] for line in capsys.readouterr().out.splitlines()[:-1]]
    assert listed == [
        *("none, loop, seed 0", "PRoPE, loop, seed 0", "none, local, seed 0"),
        *("none, loop, seed 1", "PRoPE, loop, seed 1", "none, local, seed 1"),
    ]
    study([str(study_file), "--jobs", "1"])
    fitted = [call.removeprefix("fit ") for call in main_py.calls if call.startswith("fit")]
    assert fitted == [name.replace(", seed ", "-").replace(", ", "-") for name in listed]
    printed = capsys.readouterr().out
    assert "[1/6] none, loop, seed 0: object_counting 0." in printed and "[6/6]" in printed


def test_nothing_is_made_twice_here_or_in_a_fresh_clone(main_py: FakeMain, study_file: Path, tmp_path: Path) -> None:
    study([str(study_file), *ROW])
    assert main_py.calls == OF_ROW
    study([str(study_file), *ROW])
    (tmp_path / "runs").rename(tmp_path / "elsewhere")
    study([str(study_file), *ROW])
    assert main_py.calls == OF_ROW
    questions, own, wrong = results_of(study_file)  # the questions once, though two tests have them
    assert own["questions"] == wrong["questions"] == questions["key"] and len(questions["ids"]) == 180
    assert [own["test"], wrong["test"]] == ["", "wrong cameras"]
    asked = [n for n, kind in enumerate(questions["question_types"]) if kind == "object_counting"]
    score = sum(own["question_scores"][n] for n in asked) / len(asked)
    assert own["scores"]["object_counting"] == pytest.approx(score, abs=1e-4) and 0 < own["scores"]["macro"] < 1


def test_a_training_of_another_study_is_shared_with_all_of_its_tests_or_not(
    main_py: FakeMain, study_file: Path, capsys
) -> None:
    other = write_study(study_file.with_name("other.yaml"))
    study([str(other), *ROW])
    study([str(study_file), *ROW])
    assert main_py.calls == OF_ROW and not (study_file.parent / "results/toys.jsonl").exists()
    assert "PRoPE" in study_file.with_suffix(".md").read_text().split("Not measured yet")[0]
    study([str(study_file), *ROW, "--output", "apart"])
    assert main_py.calls == OF_ROW * 2
    path = study_file.parent / "results/other.jsonl"
    *_, perturbed = lines = path.read_text().splitlines()
    assert json.loads(perturbed)["test"] == "wrong cameras"
    path.write_text("\n".join(lines[:-1]) + "\n")
    study([str(study_file), *ROW])  # the training lacks a test there, so this study has its own
    assert main_py.calls[-3:] == OF_ROW and len(main_py.calls) == 9
    path.write_text("{}\n")
    study([str(study_file), *ROW])
    assert "until then its results are not shared" in capsys.readouterr().out and len(main_py.calls) == 9


def test_other_words_are_another_training_and_the_former_result_stays(main_py: FakeMain, study_file: Path) -> None:
    study([str(study_file), *ROW])
    write_study(study_file, options={"trainer.max_steps": 4})
    study([str(study_file), *ROW])
    assert main_py.calls == OF_ROW * 2
    write_study(study_file)
    study([str(study_file), *ROW])  # the first is still known
    assert main_py.calls == OF_ROW * 2


def test_results_stay_with_the_words_when_a_setting_is_renamed(main_py: FakeMain, study_file: Path) -> None:
    study([str(study_file), *ROW])
    before = study_file.with_suffix(".md").read_text()
    settings = {name.replace("PRoPE", "Projective"): content for name, content in STUDY["settings"].items()}
    write_study(study_file, settings=settings, compare=[])
    study([str(study_file), "--write"])
    renamed = study_file.with_suffix(".md").read_text()
    assert [line.replace("Projective", "PRoPE") in before for line in renamed.splitlines() if "| 0." in line] == [
        True
    ] * 3


def test_a_new_test_is_of_the_training_that_is_there(main_py: FakeMain, study_file: Path) -> None:
    settings = {**STUDY["settings"], "PRoPE": {**STUDY["settings"]["PRoPE"], "tests": ["wrong cameras", "no frames"]}}
    study([str(study_file), *ROW])
    write_study(study_file, settings=settings, tests={**STUDY["tests"], "no frames": {"data.perturbation": "None"}})
    study([str(study_file), *ROW])
    assert main_py.calls == [*OF_ROW, "test test-no-frames"]
    changed = {"wrong cameras": {"data.perturbation": "OtherGeometry"}}
    write_study(study_file, tests=changed)
    study([str(study_file), *ROW])  # in the folder of the test of that name, whose former files go
    assert main_py.calls == [*OF_ROW, "test test-no-frames", "test test-wrong-cameras"]


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
    assert main_py.calls == [*OF_ROW, "test test-wrong-cameras"]
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


def test_a_folder_in_which_another_process_trains_is_left_alone(main_py: FakeMain, study_file: Path, capsys) -> None:
    study([str(study_file), *ROW])
    (study_file.parent / "results/toys.jsonl").unlink()
    Path("runs/studies/toys/PRoPE-loop-0/test-wrong-cameras/predictions.settings.json").unlink()
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


def test_report_shows_the_tests_of_a_study(main_py: FakeMain, study_file: Path) -> None:
    study([str(study_file), *ROW])
    runs, skipped = load_runs([Path("runs/studies/toys/PRoPE-loop-0")])
    assert [run.folder.name for run in runs] == ["PRoPE-loop-0", "test-wrong-cameras"] and not skipped


def test_required_files_are_made_first(main_py: FakeMain, study_file: Path, capsys) -> None:
    made = "fit --config geometry_tiny.yaml --trainer.default_root_dir=runs/vggt"
    settings = {**STUDY["settings"], "PRoPE": {**STUDY["settings"]["PRoPE"], "requires": ["runs/vggt/config.yaml"]}}
    write_study(study_file, settings=settings, requires={"runs/vggt/config.yaml": made})
    study([str(study_file), "--settings", "none", "--seeds", "0", "--jobs", "1"])
    assert "fit vggt again" not in main_py.calls
    main_py.calls.clear()
    study([str(study_file), *ROW])
    assert main_py.calls == ["fit vggt again", *OF_ROW]  # where it was interrupted
    write_study(study_file, settings=settings, requires={"runs/vggt/config.yaml": made.replace("vggt", "other")})
    for says in (
        "`main.py fit --config geometry_tiny.yaml .*vggt` has made it, not",
        "main.py fit .*other has not made",
    ):
        capsys.readouterr()
        with pytest.raises(SystemExit):
            study([str(study_file), *ROW, "--seeds", "1"])
        assert re.search(f"seed 1: failed: it requires runs/vggt/config.yaml: {says}", capsys.readouterr().out)
        Path("runs/vggt/config.yaml").unlink(missing_ok=True)


VGGT = "./runs/vggt/config.yaml"  # not as `pathlib` writes it
REQUIRING = {
    "settings": {**STUDY["settings"], "PRoPE": {**STUDY["settings"]["PRoPE"], "requires": [VGGT]}},
    "requires": {VGGT: "fit --broken --trainer.default_root_dir=runs/vggt"},
}


@pytest.mark.parametrize("ended", ["failed", pytest.param("killed", marks=pytest.mark.slow), "running"])
def test_the_file_of_an_unfinished_command_is_not_taken(
    ended: str, main_py: FakeMain, study_file: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    """Such as the first checkpoint of a training: it is there long before the weights are trained."""
    write_study(study_file, **REQUIRING)
    other = []

    def half_made(*args: object, **options: object) -> str:
        Path(VGGT).parent.mkdir(parents=True)
        Path(VGGT).touch()
        if ended == "killed":
            raise KeyboardInterrupt
        if ended == "running":  # another study starts meanwhile
            monkeypatch.setattr(processes, "main_py", main_py)
            with pytest.raises(SystemExit):
                study([str(study_file), *ROW, "--output", "apart"])
            other.append(capsys.readouterr().out)
        return "error: broken"

    monkeypatch.setattr(processes, "main_py", half_made)
    with pytest.raises((SystemExit, KeyboardInterrupt)):
        study([str(study_file), *ROW])
    assert Path(VGGT).exists() and main_py.calls == []
    if ended == "failed":
        assert f"PRoPE, loop, seed 0: failed: it requires {VGGT}: error: broken" in capsys.readouterr().out
    if ended == "running":
        assert f"it requires {VGGT}: another process is making {VGGT}" in other[0]
    monkeypatch.setattr(processes, "main_py", main_py)
    study([str(study_file), *ROW])
    study([str(study_file), *ROW, "--output", "apart"])
    made, *others = main_py.calls
    assert made.startswith("fit vggt") and others == OF_ROW * 2  # made once for both studies


@pytest.mark.parametrize(("files", "shared_by"), [(["a", "b"], 2), (["a"], 1)])
def test_commands_of_required_files_share_the_cores(files: list[str], shared_by: int, study_file: Path) -> None:
    """Side by side with all cores each, two trainings take ten times as long."""
    settings = {**STUDY["settings"], "PRoPE": {**STUDY["settings"]["PRoPE"], "requires": files}}
    write_study(study_file, settings=settings, requires={file: "fit" for file in files})
    plan = read_study(study_file)
    jobs = required(plan, plan.runs(plan.settings, plan.columns, plan.seeds), Launch(2))
    assert [job.launch.at_once for job in jobs] == [shared_by] * len(files)


def test_a_dry_run_lists_what_is_required_and_a_file_of_ones_own_is_taken(
    main_py: FakeMain, study_file: Path, capsys
) -> None:
    write_study(study_file, **REQUIRING)
    study([str(study_file), *ROW, "--dry_run"])
    assert f"{VGGT}: main.py {REQUIRING['requires'][VGGT]}\n" in capsys.readouterr().out
    Path(VGGT).parent.mkdir(parents=True)
    Path(VGGT).touch()
    study([str(study_file), *ROW])
    assert main_py.calls == OF_ROW


def test_released_weights_are_tested_without_a_training(main_py: FakeMain, study_file: Path, capsys) -> None:
    """In zero steps; every test has the study's options, and one with other questions its own measure."""
    released = {**STUDY["settings"]["PRoPE"], "trainer.max_steps": 0, "tests": ["all questions"]}
    everything = {"score": "macro", "data.datasets": None}
    write_study(
        study_file,
        settings={"PRoPE": released, "none": STUDY["settings"]["none"]},
        test={"data.datasets": ["arkitscenes"]},
        tests={"all questions": everything},
        compare=[],
    )
    study([str(study_file), *ROW, "--dry_run"])
    assert "PRoPE, loop, seed 0: main.py test " in capsys.readouterr().out
    study([str(study_file), *ROW])
    assert main_py.calls == ["test PRoPE-loop-0", "test test-all-questions"]
    *_, own, other = results_of(study_file)
    assert own["tested_with"] == "'--data.datasets=[\"arkitscenes\"]'" and own["fit_s"] is None
    assert other["tested_with"] == "--data.datasets=null" and "--trainer.max_steps=0" in own["fit"]
    text = study_file.with_suffix(".md").read_text()
    macro = other["scores"]["macro"]
    assert (
        f"| PRoPE | all questions (macro) | {macro:.3f}" in text and f"{own['scores']['object_counting']:.3f}" in text
    )
    study([str(study_file), *ROW])
    assert len(main_py.calls) == 2
    study([str(study_file), *ROW, "--verify"])  # there is no training to repeat
    assert "0 of 0 trainings" in capsys.readouterr().out


def test_the_files_for_sbatch_need_no_cluster(main_py: FakeMain, study_file: Path, monkeypatch, capsys) -> None:
    """One for each training that has no result, with what it takes; bash runs it with a faked srun and SLURM."""
    planned = Training(
        "", Setup("ddp", True), 4, 72e9, COST, BatchSizes(16, 56, 56), 2, max_steps=3, is_pretrained=True
    )
    monkeypatch.setattr("commands.studies.scripts.parsed", lambda words: planned)
    study([str(study_file), *ROW])
    capsys.readouterr()
    slurm = ["--executor", "slurm", "--print_scripts", "--slurm.partition", "gpu", "--slurm.cpus_per_task", "7"]
    study([str(study_file), "--seeds", "0", *slurm])
    printed = capsys.readouterr().out
    folder = Path("runs/studies/toys/scripts")
    assert sorted(path.name for path in folder.iterdir()) == ["none-local-0.sbatch", "none-loop-0.sbatch", "plan.md"]
    assert "| none, loop, seed 0 | 4 | 74.0 | - | - | 0.0 | - | - |" in printed  # an H200 has room for 74 GB
    script = (folder / "none-loop-0.sbatch").read_text()
    for line in ("ntasks-per-node=4", "gpus-per-node=4", "nodes=1", "partition=gpu", "cpus-per-task=7", "requeue\n"):
        assert f"#SBATCH --{line}" in script
    with pytest.raises(InputError, match="--print_scripts: with --executor slurm"):
        study([str(study_file), "--print_scripts"])

    faked = Path("faked")
    faked.mkdir()
    for name, does in {"python": 'echo "$@" > called; exit $STATUS', "scontrol": 'echo "$@" > requeued'}.items():
        (faked / name).write_text(f"#!/bin/bash\n{does}\n")
        (faked / name).chmod(0o755)
    assert "#SBATCH --signal=TERM@300\n" in script  # to the training: srun that is sent it kills it
    for status in (143, 1, 0):
        environment = {"PATH": f"{faked.absolute()}:{os.environ['PATH']}", "SLURM_JOB_ID": "17", "STATUS": str(status)}
        environment["SLURM_CPUS_PER_TASK"] = "7"
        done = subprocess.run(["bash", str(folder / "none-loop-0.sbatch")], env=environment)
        assert done.returncode == status and Path("requeued").exists() == (status == 143)
        Path("requeued").unlink(missing_ok=True)
    words = Path("called").read_text().split()
    assert words[:3] == ["main.py", "study", str(study_file)]
    assert words[3:] == ["--settings", "none", "--columns", "loop", "--seeds", "0", "--jobs", "1", "--launcher", "srun"]


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
