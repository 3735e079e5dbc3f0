"""A study trains what has no result, and lists, shares and reports what it trains."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from commands.plan import Training
from commands.reports.loaded_runs import load_runs
from commands.study import study
from tests.commands.made_cost import COST
from tests.commands.studies.faked import OF_ROW, ROW, STUDY, FakeMain, results_of, write_study
from zoo.errors import InputError
from zoo.tasks.training_cost import BatchSizes

pytestmark = pytest.mark.usefixtures("read_once")


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
    assert main_py.calls == [*OF_ROW, "test no-frames"]
    changed = {"wrong cameras": {"data.perturbation": "OtherGeometry"}}
    write_study(study_file, tests=changed)
    study([str(study_file), *ROW])  # in the folder of the test of that name, whose former files go
    assert main_py.calls == [*OF_ROW, "test no-frames", "test wrong-cameras"]


def test_report_shows_the_tests_of_a_study(main_py: FakeMain, study_file: Path) -> None:
    study([str(study_file), *ROW])
    runs, skipped = load_runs([Path("runs/studies/toys/PRoPE-loop-0")])
    assert [run.folder.name for run in runs] == ["PRoPE-loop-0", "wrong-cameras"] and not skipped


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
    assert main_py.calls == ["test PRoPE-loop-0", "test all-questions"]
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


def test_the_files_for_sbatch_need_no_cluster(main_py: FakeMain, study_file: Path, monkeypatch, capsys) -> None:
    """One for each training that has no result, with what it takes; bash runs it with a faked srun and SLURM."""
    planned = Training(
        COST, BatchSizes(16, 56, 56), "ddp", True, gpus=4, accumulated=2, max_steps=3, is_pretrained=True
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
