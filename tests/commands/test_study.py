"""A study trains what has no result, goes on after what fails or is killed, and writes the tables of what it has."""

from __future__ import annotations

import fcntl
import json
import os
import re
import shlex
import signal
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from lightning.pytorch.loggers import TensorBoardLogger

from commands.reports.plot import draw
from commands.responses.results import RESPONSES, Response, Sums, as_json
from commands.studies.protocols import protocol_study
from commands.studies.results import Results, load, open_results
from commands.studies.running import Launch, check_commands, learning_curve
from commands.studies.study_file import read_study
from commands.study import study
from tests.commands import fake_main
from zoo.errors import InputError
from zoo.files.atomic_io import write_json

STUDY: dict[str, Any] = {
    "title": "Toys",
    "configs": ["data_rooms.yaml"],
    "options": {"trainer.max_steps": 3},
    "seeds": [0, 1],
    "score": "object_counting",
    "columns": {"loop": {"data.source.trajectory": "loop"}, "local": {"data.source.trajectory": "local"}},
    "tests": {"wrong cameras": {"data.perturbation": "OtherCameras"}},
    "settings": {
        "none": {"configs": ["qwen25_vl.yaml"]},
        "PRoPE": {
            "configs": ["prope.yaml"],
            "columns": ["loop"],
            "tests": ["wrong cameras"],
            "model.camera_encoding": "PRoPE",
        },
    },
    "compare": [
        {"title": "Do cameras help?", "baseline": "none", "settings": ["PRoPE"]},
        {"title": "Do wrong cameras hurt?", "settings": ["PRoPE"], "tests": ["wrong cameras"]},
    ],
}
ROW = ["--settings", "PRoPE", "--seeds", "0", "--jobs", "1"]
OF_ROW = ["fit PRoPE-loop-0", "test own", "test wrong-cameras"]
Write = Callable[..., None]


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Write:
    """Writes studies/toys.yaml in an empty working directory, with other values of some keys.

    The options are not parsed, and the scores are not drawn, which takes seconds.
    """
    monkeypatch.setattr("commands.studies.execution.check_commands", lambda *commands: None)
    monkeypatch.setattr("commands.studies.document.draw", lambda *scores: None)
    monkeypatch.chdir(tmp_path)
    Path("studies").mkdir()

    def write_study(name: str = "toys", **changes: Any) -> None:
        Path(f"studies/{name}.yaml").write_text(yaml.safe_dump({**STUDY, **changes}, sort_keys=False))

    write_study()
    return write_study


def run(*words: str, name: str = "toys") -> None:
    """Run a study whose trainings are faked."""
    study([f"studies/{name}.yaml", "--launcher", shlex.join([sys.executable, "-S", fake_main.__file__]), *words])


def calls() -> list[str]:
    """Return the faked calls since the last time."""
    file = Path("calls")
    found = file.read_text().splitlines() if file.exists() else []
    file.unlink(missing_ok=True)
    return [call.strip() for call in found]


def lines(name: str = "toys") -> list[dict[str, Any]]:
    """Return the results of a study."""
    file = Path(f"studies/results/{name}.jsonl")
    every = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    return [line for line in every if "setting" in line]


def test_whole_tables_come_early_and_nothing_is_made_twice(write: Write, capsys: pytest.CaptureFixture) -> None:
    run("--dry_run")
    assert not calls() and not lines()
    listed = [line.partition(":")[0] for line in capsys.readouterr().out.splitlines()[1:]]
    assert listed[:4] == ["none, loop, seed 0", "PRoPE, loop, seed 0", "none, local, seed 0", "none, loop, seed 1"]
    run("--jobs", "1")
    fitted = [call.removeprefix("fit ") for call in calls() if call.startswith("fit")]
    assert fitted == [name.replace(", seed ", "-").replace(", ", "-") for name in listed]
    assert "[6/6] none, local, seed 1: object_counting 0." in capsys.readouterr().out
    run()
    Path("runs").rename("elsewhere")  # as in a fresh clone
    run()
    assert not calls() and len(lines()) == 8


def test_the_tables_hold_the_means_of_the_results(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("commands.studies.document.draw", draw)
    run()
    scores = [
        [
            line["scores"]["object_counting"]
            for line in lines()
            if (line["setting"], line["column"], line["test"]) == row
        ]
        for row in (("none", "loop", ""), ("PRoPE", "loop", ""), ("PRoPE", "loop", "wrong cameras"))
    ]
    none, prope, wrong = map(statistics.mean, scores)
    document = Path("studies/toys.md").read_text()
    rows = {line.split("|")[1].strip(): line for line in document.splitlines() if line.startswith("| ")}
    low, high = min(scores[1]), max(scores[1])
    assert f"{prope:.3f} ({low:.3f} to {high:.3f})" in document and f"{wrong:.3f}" in document
    assert f"{none:.3f}" in rows["none"] and "<" in rows["none"] and "0.300" in rows["best constant answer"]
    assert f"{prope - none:+.3f}" in document and f"{wrong - prope:+.3f}" in document  # compared
    assert Path("studies/toys.png").stat().st_size > 1000
    question_scores = lines()[0]["question_scores"]
    assert len(question_scores) == fake_main.QUESTIONS and statistics.mean(question_scores[::2]) == pytest.approx(
        lines()[0]["scores"]["object_counting"], abs=1e-5
    )


@pytest.mark.slow
def test_trainings_of_which_some_begin_are_listed_and_have_no_mean(write: Write) -> None:
    compare = [{"title": "Do cameras help?", "baseline": "none", "settings": ["PRoPE"], "interest": 0.05}]
    write(compare=compare, seeds=[0, 1, 2])
    run()
    rows = lines()
    shown = Path("studies/toys.md").read_text()
    assert "| higher" in shown and "begin" not in shown
    scores = dict(zip((0, 1, 2), (0.9, 0.2, 0.8), strict=True))
    for row in rows:
        row["curve"] = [[100, 0.1], [200, row["scores"]["object_counting"]], [300, 0.9]]
        if (row["setting"], row["test"]) == ("PRoPE", ""):
            row["scores"]["object_counting"] = scores[row["seed"]]
            row["curve"] = [[100, 0.3], [200, 0.1 * row["seed"]], [300, scores[row["seed"]]]]
    file = Path("studies/results/toys.jsonl")
    questions = [line for line in map(json.loads, file.read_text().splitlines()) if "setting" not in line]
    file.write_text("".join(f"{json.dumps(line)}\n" for line in [*questions, *rows]))
    write(compare=compare, seeds=[0, 1, 2], begins=0.5)
    run("--write")
    shown = Path("studies/toys.md").read_text()
    assert "0.900, 0.200, 0.800 (2 of 3 begin)" in shown and "not all trainings begin" in shown
    assert "| higher" not in shown
    (begun,) = [line for line in shown.splitlines() if line.startswith("| PRoPE, loop")]
    assert begun.split("|")[2].strip() == "300, 300, > 300"
    assert Path("studies/toys_curves.png").stat().st_size > 1000


@pytest.mark.slow
def test_the_learning_curve_is_that_of_all_starts_of_a_training(tmp_path: Path) -> None:
    for steps in ((10, 20), (20, 30)):  # it was killed after step 20, and its last checkpoint was of step 10
        logger = TensorBoardLogger(tmp_path, name="", version="")
        for step in steps:  # Lightning counts from 0
            logger.log_metrics({"val/object_counting": step / 100, "val/all/macro": step / 50}, step - 1)
        logger.finalize("success")
        time.sleep(1.1)  # the files' names have seconds
    assert learning_curve(tmp_path, "macro") == [
        (10, pytest.approx(0.2)),
        (20, pytest.approx(0.4)),
        (30, pytest.approx(0.6)),
    ]
    assert [step for step, _ in learning_curve(tmp_path, "object_counting")] == [10, 20, 30]
    assert learning_curve(tmp_path, "room_size_estimation") == []


def test_an_edited_setting_never_keeps_an_old_number(write: Write, capsys: pytest.CaptureFixture) -> None:
    run(*ROW)
    assert calls() == OF_ROW
    write(options={"trainer.max_steps": 4})
    run("--write")
    assert "PRoPE (2)" in capsys.readouterr().out
    assert "Not measured yet: none; PRoPE" in Path("studies/toys.md").read_text()
    run(*ROW)
    assert calls() == ["fit PRoPE-loop-0-2", *OF_ROW[1:]]  # nothing finished is overwritten
    write()
    run(*ROW)
    assert not calls()  # the former result belongs to it again
    write(options={"trainer.max_steps": 3, "trainer.devices": 1, "data.num_workers": 2})
    run(*ROW)
    assert not calls()  # options that change no result
    write(options={**STUDY["options"], "model.repetition_penalty": 1.1})  # changes answers alone
    run(*ROW)
    assert calls() == ["fit PRoPE-loop-0-3", *OF_ROW[1:]]
    Path("mine.yaml").write_text("trainer: {max_steps: 4}\n")  # what a config says counts as well
    write(options={}, configs=["data_rooms.yaml", "mine.yaml"])
    run(*ROW)
    assert not calls()
    Path("mine.yaml").write_text("trainer: {max_steps: 5}\n")
    run("--write")
    assert "PRoPE (6)" in capsys.readouterr().out


def test_results_stay_when_a_setting_is_renamed_and_bars_and_line_breaks_keep_the_tables(write: Write) -> None:
    run(*ROW)
    score = f"{lines()[0]['scores']['object_counting']:.3f}"
    settings = {name.replace("PRoPE", "|q|\n"): content for name, content in STUDY["settings"].items()}
    write(settings=settings, compare=[{"title": "x", "baseline": "|q|\n", "settings": ["none"]}])
    run("--settings", "|q|\n", "--seeds", "0", "1")
    assert calls() == [*OF_ROW, "fit q-loop-1", *OF_ROW[1:]]
    text = Path("studies/toys.md").read_text()
    row = next(line for line in text.splitlines() if line.startswith(r"| \|q\| "))
    assert score in row and r"minus *\|q\| *" in text


@pytest.mark.slow
def test_a_study_says_no_more_than_it_knows(write: Write) -> None:
    """One seed, missing trainings, a shared start, seeds after a look, and a test that lacks a seed."""

    def document(**changes: Any) -> str:
        write(**changes)
        run("--write")
        return Path("studies/toys.md").read_text()

    compare = [{**each, "interest": 0.05} for each in STUDY["compare"]]
    note = "one seed: the interval is over scenes alone"
    run("--seeds", "0")
    one = document(compare=compare)
    assert one.startswith("# Toys (interim)\n") and one.count(note) == 2  # below each of the tables
    assert one.count(" * |") == 2 and one.count("| lead ") == 2 and "| higher" not in one
    run()
    whole = document(compare=compare)
    assert whole.startswith("# Toys\n") and note not in whole
    file = Path("studies/results/toys.jsonl")
    file.write_text("".join(line for line in file.open() if '"seed": 1, "test": "wrong cameras"' not in line))
    lacking = document(compare=compare)
    (row,) = [line for line in lacking.split("Further tests")[1].splitlines() if line.startswith("| PRoPE")][:1]
    own, wrong = (
        next(each for each in lines() if (each["setting"], each["seed"], each["test"]) == ("PRoPE", 0, test))
        for test in ("", "wrong cameras")
    )
    change = wrong["scores"]["object_counting"] - own["scores"]["object_counting"]
    assert f"{change:+.3f} (seed 0)" in row and "1 of 2 seeds" in row and "(interim)" in lacking
    assert "added after a look" not in lacking and "for this start" not in lacking
    started = {"trainer.max_steps": 3, "model.initial_weights": "start.ckpt"}
    text = document(compare=compare, options=started, added_seeds=[1])
    assert "added after a look at the results of the others: 1." in text
    assert "All trainings start from trained weights (`start.ckpt`)" in text
    run()
    assert Path("studies/toys.md").read_text().count("95 % interval, for this start") == 2


@pytest.mark.slow
def test_above_all_oracles_is_said_with_an_interval_and_not_of_few_seeds(write: Write) -> None:
    def verdict(oracle: float, seeds: list[int]) -> str:
        file = Path("studies/results/toys.jsonl")
        rows = [json.loads(line) for line in file.read_text().splitlines()]
        for row in (row for row in rows if "setting" in row):
            row["baselines"] = {"constant": {"object_counting": 0.1}, "oracle: pose": {"object_counting": oracle}}
        file.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
        write(seeds=seeds, tests={"wrong cameras": {"data.perturbation": "OtherCameras"}})
        run("--write")
        found = [line for line in Path("studies/toys.md").read_text().splitlines() if "oracles" in line]
        return next(line for line in found if not line.startswith("<"))

    write(seeds=[0, 1, 2])
    run()
    assert re.match(r"Above all .*: PRoPE, loop, \+0\.\d{3} \(\+0\.\d{3} to \+0\.\d{3}\)\.$", verdict(0.5, [0, 1, 2]))
    mean = statistics.mean(
        row["scores"]["object_counting"] for row in lines() if (row["setting"], row["test"]) == ("PRoPE", "")
    )
    nearly = verdict(mean - 0.001, [0, 1, 2])
    assert "Above all blind baselines and oracles: none. Above them in the mean, which is not shown: PRoPE" in nearly
    assert verdict(0.3, [0, 1]).startswith(
        "Not judged against all blind baselines and oracles, with fewer than 3 seeds"
    )


def test_answers_are_kept_and_results_without_them_stay_readable(write: Write) -> None:
    run(*ROW)
    plan = read_study(Path("studies/toys.yaml"))
    results = open_results(plan)
    (row,) = [row for row in load(Path("studies/toys.yaml"))[0] if not row.test]
    table = row.questions
    assert [*table["truth"]] == [str(number) for number in range(fake_main.QUESTIONS)]
    expected = [f"{number * score:.1f}" for number, score in enumerate(table["score"])]
    assert [*table["prediction"]] == expected and len(results.own[0].predictions) < 400
    former = []  # as a former version has written them
    for line in map(json.loads, Path("studies/results/toys.jsonl").read_text().splitlines()):
        former.append({name: value for name, value in line.items() if name not in ("predictions", "ground_truths")})
    Path("studies/results/toys.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in former))
    tests = {"wrong cameras": {"data.perturbation": "OtherGeometry"}}
    write(tests=tests)  # a new test of the former training
    run(*ROW)
    (row,) = [row for row in load(Path("studies/toys.yaml"))[0] if row.test]
    assert "prediction" in row.questions
    changes = [line for line in Path("studies/toys.md").read_text().splitlines() if "| wrong cameras" in line]
    assert len(changes) == 2 and all(re.search(r"\| [+-]0\.\d{3}", line) for line in changes)


def test_a_setting_is_trained_again_when_asked_and_a_new_test_is_of_the_new_training(write: Write) -> None:
    run(*ROW)
    run(*ROW, "--again", "PRoPE")
    former, _, new, other = lines()
    assert former["trained"] != new["trained"] == other["trained"]
    score = new["scores"]["object_counting"]
    assert score != former["scores"]["object_counting"]
    assert f"| PRoPE     | {score:.3f}" in Path("studies/toys.md").read_text()
    prope = {**STUDY["settings"]["PRoPE"], "tests": ["wrong cameras", "no frames"]}
    tests = {**STUDY["tests"], "no frames": {"data.perturbation": "None"}}
    write(settings={**STUDY["settings"], "PRoPE": prope}, tests=tests)
    run(*ROW)
    assert calls() == [*OF_ROW, "fit PRoPE-loop-0-2", *OF_ROW[1:], "test no-frames"]
    assert lines()[-1]["trained"] == new["trained"]
    [row] = (line for line in Path("studies/toys.md").read_text().splitlines() if line.startswith("| PRoPE     | 0."))
    assert f"{score:.3f}" in row


def test_a_training_of_another_study_is_shared_with_all_of_its_tests_or_not(
    write: Write, capsys: pytest.CaptureFixture
) -> None:
    write("other")
    run(*ROW, name="other")
    run(*ROW)
    assert calls() == OF_ROW and not lines()
    assert "PRoPE" in Path("studies/toys.md").read_text().split("Not measured yet")[0]
    run(*ROW, "--output", "apart")
    assert calls() == OF_ROW
    file = Path("studies/results/other.jsonl")
    file.write_text("".join(file.read_text().splitlines(True)[:-1]))
    run(*ROW)  # the training lacks a test there, so this study has its own
    assert calls() == OF_ROW and len(lines()) == 2
    file.write_text("{}\n")
    run(*ROW)
    assert "until then its results are not shared" in capsys.readouterr().out and not calls()


def test_a_new_or_changed_test_is_of_the_training_that_is_there(write: Write) -> None:
    run(*ROW)
    settings = {**STUDY["settings"], "PRoPE": {**STUDY["settings"]["PRoPE"], "tests": ["wrong cameras", "no frames"]}}
    write(settings=settings, tests={**STUDY["tests"], "no frames": {"data.perturbation": "None"}})
    run(*ROW)
    write(tests={"wrong cameras": {"data.perturbation": "OtherGeometry"}})
    run(*ROW)
    assert calls() == [*OF_ROW, "test no-frames", "test wrong-cameras-2"]
    assert len({line["trained"] for line in lines()}) == 1


def test_released_weights_are_tested_without_a_training(write: Write) -> None:
    """Every test has the study's options, and one with other questions its own measure."""
    released = {**STUDY["settings"]["PRoPE"], "trainer.max_steps": 0, "tests": ["all questions"]}
    everything = {"score": "macro", "data.datasets": None}
    settings = {"PRoPE": released, "none": STUDY["settings"]["none"]}
    write(settings=settings, test={"data.datasets": ["arkitscenes"]}, tests={"all questions": everything}, compare=[])
    run(*ROW)
    assert calls() == ["test own", "test all-questions"]
    own, other = lines()
    assert own["test_options"] == {"data.datasets": ["arkitscenes"]} and own["fit_s"] is None
    assert other["test_options"] == {"data.datasets": None}
    text = Path("studies/toys.md").read_text()
    assert "all questions (macro)" in text and f"{other['scores']['macro']:.3f}" in text
    run("--settings", "PRoPE")  # the same weights under another seed have the same score
    assert not calls() and len(lines()) == 2
    settings["PRoPE"]["model.sampling.temperature"] = 0.5  # the control: other draws
    write(settings=settings, test={"data.datasets": ["arkitscenes"]}, tests={"all questions": everything}, compare=[])
    run("--settings", "PRoPE")
    assert calls().count("test own") == 2


def test_what_fails_is_named_and_the_rest_goes_on(
    write: Write, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setenv("FAKE_FAILS", "--model.camera_encoding=PRoPE")
    with pytest.raises(SystemExit, match="1 of 3 trainings have failed"):
        run("--seeds", "0", "--jobs", "1")
    assert "PRoPE, loop, seed 0: failed: it is wrong (all of it in" in capsys.readouterr().out
    assert {line["setting"] for line in lines()} == {"none"}
    monkeypatch.setenv("FAKE_FAILS", "--data.perturbation=OtherCameras")
    with pytest.raises(SystemExit, match="1 of 1 trainings have failed"):
        run(*ROW)
    assert [line["test"] for line in lines() if line["setting"] == "PRoPE"] == [""]
    calls()
    monkeypatch.delenv("FAKE_FAILS")
    run(*ROW)
    assert calls() == ["test wrong-cameras"]  # a failed test costs no training


def test_a_failure_that_settings_share_ends_the_study(
    write: Write, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    settings = {name: {"configs": ["qwen25_vl.yaml"]} for name in "abc"}
    write(settings=settings, seeds=[0], compare=[])
    monkeypatch.setenv("FAKE_FAILS", "--data.source.trajectory=local")
    with pytest.raises(SystemExit, match="3 of 6 trainings have failed"):  # after others have succeeded, all are tried
        run("--jobs", "1")
    assert len(calls()) == 9 and "not started" not in capsys.readouterr().out
    monkeypatch.setenv("FAKE_FAILS", "--trainer.max_steps=4")
    write(settings=settings, seeds=[0], compare=[], options={"trainer.max_steps": 4})
    with pytest.raises(SystemExit, match="2 of 6 trainings have failed, and 4 were not started"):
        run("--jobs", "1")
    assert calls() == ["fit a-loop-0-2", "fit b-loop-0-2"]


@pytest.mark.parametrize(
    ("changes", "words", "says"),
    [
        ({"options": {"model.camera_encodng": "GTA"}}, [], "none, loop: model.camera_encodng.*did you mean"),
        (
            {"settings": {"PRoPE": {"model": "PRoPEMLLM", "trainer.precision": "bf17"}}},
            ["--dry_run"],
            "PRoPE, loop: trainer.precision",
        ),
        (
            {"settings": {"a": {"configs": ["prope.yaml"], "model.camera_encoding": "Prope"}}},
            [],
            "a, loop: .*mean PRoPE",
        ),
        ({"tests": {"wrong cameras": {"data.perturbaton": "OtherCameras"}}}, ROW, "wrong cameras: data.perturbaton"),
        ({"requires": {"file": "fit --config qwen25_vl.yaml --modl 3"}}, [], "file: modl: there is no such option"),
    ],
)
def test_options_are_parsed_before_the_first_training(
    changes: dict, words: list[str], says: str, write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("commands.studies.execution.check_commands", check_commands)
    settings = {name: {**each, "requires": [*changes.get("requires", ())]} for name, each in STUDY["settings"].items()}
    write(**{"settings": settings, **changes}, compare=[])
    with pytest.raises(InputError, match=f"^studies/toys.yaml: {says}") as error:
        run(*words)
    assert "\n" not in str(error.value) and not calls() and not Path("runs").exists()


@pytest.mark.slow
def test_right_options_are_parsed_without_a_word(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    """The control of the test before this one."""
    monkeypatch.setattr("commands.studies.execution.check_commands", check_commands)
    run(*ROW, "--dry_run")


def test_a_killed_training_goes_on(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_KILLED", "--model.camera_encoding=PRoPE")
    with pytest.raises(SystemExit, match="1 of 1 trainings have failed"):
        run(*ROW)
    monkeypatch.delenv("FAKE_KILLED")
    run(*ROW)
    assert calls() == ["fit PRoPE-loop-0", "fit PRoPE-loop-0 again", *OF_ROW[1:]]
    assert lines()[0]["fit_s"] is None  # nobody knows the time of a part


def test_damaged_results(write: Write) -> None:
    run(*ROW)
    file = Path("studies/results/toys.jsonl")
    whole = file.read_text()
    file.write_text(whole[:-30])  # as a kill leaves it
    run(*ROW)
    assert file.read_text() == whole and calls() == OF_ROW  # the test is still in its folder
    file.write_text("".join(line for line in whole.splitlines(True) if '"ids"' not in line))
    run(*ROW)
    assert "PRoPE" in Path("studies/toys.md").read_text().split("Not measured yet")[0]
    file.write_text(whole.replace("\n", "\n<<<<<<< HEAD\n", 1))
    with pytest.raises(InputError, match="toys.jsonl, line 2"):
        run(*ROW)


def test_a_folder_in_which_another_process_trains_is_left_alone(write: Write, capsys: pytest.CaptureFixture) -> None:
    folder = Path("runs/studies/toys")
    folder.mkdir(parents=True)
    with (folder / "PRoPE-loop-0.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(SystemExit):
            run(*ROW)
    assert "another process is training in runs/studies/toys/PRoPE-loop-0" in capsys.readouterr().out and not calls()


def test_two_studies_at_once_add_a_result_once(write: Write) -> None:
    run(*ROW)
    made, both = Results(Path("studies/results/toys.jsonl")), [Results(Path("both.jsonl")) for _ in range(2)]
    for results in both:
        for result in made.own:
            results.add(result, made.questions[result.questions])
    assert len(made.own) == 2 and Path("both.jsonl").read_bytes() == made.path.read_bytes()


@pytest.mark.usefixtures("interruptible")
def test_an_interrupted_study_has_its_trainings_saved(write: Write, capsys: pytest.CaptureFixture) -> None:
    """A training, here a script of bash, is asked to end and waited for."""
    launcher = Path("launcher").absolute()
    launcher.write_text('#!/bin/bash\ntrap "sleep 0.2; touch saved; exit 143" TERM\ntouch started\nsleep 60 & wait\n')
    launcher.chmod(0o755)

    def interrupt() -> None:
        while not Path("started").exists():
            time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt, daemon=True).start()
    with pytest.raises(KeyboardInterrupt):
        study(["studies/toys.yaml", *ROW, "--launcher", shlex.quote(str(launcher))])
    assert Path("saved").exists()
    assert "to go on, from the checkpoints: python " in capsys.readouterr().out
    launcher.write_text("#!/bin/bash\nexit 143\n")  # SLURM has asked the training to end, and not the study
    with pytest.raises(SystemExit) as ended:
        study(["studies/toys.yaml", *ROW, "--launcher", shlex.quote(str(launcher))])
    assert ended.value.code == 143


def test_required_files_are_made_first_once_and_whole(
    write: Write, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """The first checkpoint of a training is there long before its weights are trained."""
    file = "runs/vggt/checkpoints/last.ckpt"
    settings = {**STUDY["settings"], "PRoPE": {**STUDY["settings"]["PRoPE"], "requires": [file]}}
    requires = {file: "fit --config geometry_tiny.yaml --trainer.default_root_dir=runs/vggt"}
    write(settings=settings, requires=requires)
    run("--settings", "none", "--seeds", "0")
    assert "fit vggt" not in calls()
    monkeypatch.setenv("FAKE_KILLED", "geometry_tiny.yaml")
    with pytest.raises(SystemExit):
        run(*ROW)
    assert Path(file).exists() and calls() == ["fit vggt"]
    assert f"PRoPE, loop, seed 0: failed: it requires {file}: interrupted" in capsys.readouterr().out
    monkeypatch.delenv("FAKE_KILLED")
    run(*ROW, "--dry_run")
    assert f"{file}: main.py {requires[file]}" in capsys.readouterr().out
    run(*ROW)
    run(*ROW, "--output", "apart")
    assert calls() == ["fit vggt again", *OF_ROW, *OF_ROW]
    write(settings=settings, requires={file: "fit --trainer.default_root_dir=runs/vggt"})
    with pytest.raises(InputError, match=f"geometry_tiny.yaml .*has made {file}, not .*: remove it"):
        run(*ROW, "--seeds", "1")


def test_a_file_that_another_command_reads_is_made_before_it(write: Write) -> None:
    """The files are listed in the other order, so only the commands tell which comes first."""
    first, second = "runs/vggt/checkpoints/last.ckpt", "runs/field/checkpoints/last.ckpt"
    settings = {**STUDY["settings"], "PRoPE": {**STUDY["settings"]["PRoPE"], "requires": [second, first]}}
    requires = {file: f"fit --trainer.default_root_dir={Path(file).parents[1]}" for file in (second, first)}
    requires[second] += " --model.initial_weights runs/vggt/checkpoints"
    write(settings=settings, requires=requires)
    run(*ROW, "--jobs", "2")
    assert calls() == ["fit vggt", "fit field", *OF_ROW]


@pytest.mark.slow
def test_a_file_that_another_study_makes_is_waited_for(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    """Jobs on a cluster that share a required file start at the same time."""
    file = Path("runs/vggt/checkpoints/last.ckpt")
    settings = {**STUDY["settings"], "PRoPE": {**STUDY["settings"]["PRoPE"], "requires": [str(file)]}}
    write(settings=settings, requires={str(file): "fit --trainer.default_root_dir=runs/vggt"})
    lock = Path("runs/studies/.requires/runs%2Fvggt%2Fcheckpoints%2Flast.ckpt.lock")
    lock.parent.mkdir(parents=True)
    other = lock.open("w")
    fcntl.flock(other, fcntl.LOCK_EX)

    def make_file(*words: object, **options: Any) -> None:
        """End the other study's work once this one says that it waits."""
        sys.stdout.write(f"{words[0] if words else ''}\n")
        if "waiting for another process" in str(words[:1]):
            file.parent.mkdir(parents=True)
            file.touch()
            other.close()

    with monkeypatch.context() as patched:
        patched.setattr("builtins.print", make_file)
        run(*ROW)
    assert calls() == OF_ROW


def test_files_for_sbatch_run_one_training_each(write: Write, tmp_path: Path, monkeypatch, capsys) -> None:
    """Bash runs one with a faked Python and SLURM; `--executor slurm` submits the same files, here to bash."""
    run(*ROW)
    capsys.readouterr()
    slurm = ["--executor", "slurm", "--slurm.partition", "gpu", "--slurm.cpus_per_task", "7"]
    study(["studies/toys.yaml", "--seeds", "0", *slurm, "--print_scripts"])
    folder = Path("runs/studies/toys/scripts")
    assert sorted(path.name for path in folder.iterdir()) == ["none-local-0.sbatch", "none-loop-0.sbatch", "plan.md"]
    printed = capsys.readouterr().out
    assert f'for script in {folder}/*.sbatch; do sbatch "$script"; done' in printed
    planned = [line.split("|")[1:-1] for line in printed.splitlines() if line.startswith("| ")]
    assert [row[0].strip() for row in planned[1:]] == [
        *("none, loop, seed 0", "none, local, seed 0", "all trainings, hours of one GPU")
    ]
    assert float(planned[-1][-1]) == pytest.approx(float(planned[1][-1]) + float(planned[2][-1]), abs=0.1)
    script = (folder / "none-loop-0.sbatch").read_text()
    for line in ("ntasks-per-node=1", "nodes=1", "partition=gpu", "cpus-per-task=7", "requeue\n", "signal=TERM@300\n"):
        assert f"#SBATCH --{line}" in script

    Path("faked").mkdir()
    faked = {
        "python": 'echo "$@" >> called; exit $STATUS',
        "scontrol": 'echo "$@" > requeued',
        "sbatch": 'bash "$2"',  # the script behind --wait
    }
    for name, does in faked.items():
        (Path("faked") / name).write_text(f"#!/bin/bash\n{does}\n")
        (Path("faked") / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'faked'}:{os.environ['PATH']}")
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", "7")
    for status in (143, 1, 0):
        monkeypatch.setenv("STATUS", str(status))
        assert subprocess.run(["bash", str(folder / "none-loop-0.sbatch")]).returncode == status
        assert Path("requeued").exists() == (status == 143)
        Path("requeued").unlink(missing_ok=True)
    words = Path("called").read_text().splitlines()[-1].split()
    assert words[:3] == ["main.py", "study", "studies/toys.yaml"]
    assert words[3:] == ["--settings", "none", "--columns", "loop", "--seeds", "0", "--jobs", "1", "--launcher", "srun"]
    Path("called").unlink()
    study(["studies/toys.yaml", "--seeds", "0", *slurm])
    assert sorted(line.split()[6] for line in Path("called").read_text().splitlines()) == ["local", "loop"]
    monkeypatch.setenv("STATUS", "1")
    with pytest.raises(SystemExit, match="2 of 2 trainings have failed"):
        study(["studies/toys.yaml", "--seeds", "0", *slurm])


@pytest.mark.parametrize(
    ("changes", "words", "says"),
    [
        ({"setings": {"a": {}}}, [], "setings.*settings"),
        ({"settings": {}}, [], "settings: there is none"),
        ({"seeds": [0, 0]}, [], "seed 0 is given twice"),
        ({"added_seeds": [2]}, [], "there is no seed 2"),
        ({"settings": {"a": {"configs": ["prop.yaml"]}}}, [], "no config prop.yaml.*prope"),
        ({"settings": {"a b": {}, "a-b": {}}, "compare": []}, [], "share the folder a-b"),
        ({"tests": {"wrong cameras": {}, "own": {}}}, [], "share the folder own"),
        ({"compare": [{"title": "x", "settings": ["PRoPE"]}]}, [], "compare: x: name a baseline or tests"),
        ({"requires": {"file": "train it"}}, [], "requires: file: give what follows main.py"),
        ({}, ["--settings", "prope"], "no setting prope.*PRoPE"),
        ({}, ["--again", "GTA"], "no setting GTA"),
        ({}, ["--jobs", "0"], "--jobs 0: at least 1"),
        ({}, ["--print_scripts"], "--print_scripts: give --executor slurm"),
    ],
)
def test_mistakes_are_one_line_that_names_the_key(changes: dict, words: list[str], says: str, write: Write) -> None:
    write(**changes)
    with pytest.raises(InputError, match=says) as error:
        run(*words)
    assert "\n" not in str(error.value)


def test_yaml_that_hides_a_key_is_refused(write: Write) -> None:
    Path("studies/toys.yaml").write_text("title: a\nsettings: {a: {x: 1}}\ntitle: b\n")
    with pytest.raises(InputError, match="line 3: title"):
        run()
    with pytest.raises(InputError, match="did you mean studies/toys.yaml"):
        run(name="toy")


def test_a_study_of_two_protocols_switches_one_option_at_a_time() -> None:
    found = protocol_study("protocol_spatial_mllm.yaml", "protocol_lmms_eval.yaml", {"configs": ["prope.yaml"]})
    switched = [
        *("model.time_index", "model.text_after_vision", "model.max_new_tokens"),
        *("data.num_frames", "data.sampler", "data.prompt_prefix", "data.pixels"),
    ]
    assert [*found["tests"]] == [*switched, "all together"]
    assert found["test"]["data.num_frames"] == 16 and found["tests"]["data.num_frames"] == {"data.num_frames": 32}
    assert [*found["tests"]["all together"]] == switched and "metrics.scorer" in found["test"]
    with pytest.raises(InputError, match="differ in nothing"):
        protocol_study("protocol_vg_llm.yaml", "protocol_vg_llm.yaml", {})


def test_responses_of_trained_models(
    write: Write, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """They are measured once per training, also where its scores are known already, and pooled over seeds."""
    run("--settings", "PRoPE")
    assert len(lines()) == 4
    settings = {**STUDY["settings"], "PRoPE": {**STUDY["settings"]["PRoPE"], "responses": ["TurnedCameras"]}}
    write(settings=settings)
    asked: list[str] = []

    def measured(log: Path, launch: Launch, lock: int, *words: str) -> str | None:
        asked.append(" ".join([words[0], Path(words[1]).name, *words[2:]]))
        own = Response("TurnedCameras", "panel_turn", "answer", False, 1.0, "", 14, made_sums(len(asked)))
        write_json(Path(words[1], RESPONSES), {"responses": [as_json(own)]})
        return None

    def made_sums(seed: int) -> dict[str, Sums]:
        return {f"room {n}": Sums(7.0, 6.0, 10.0, 8.0 + seed + n, 9.0, 0.0, 0.0, 7.0, 14.0, 6.3) for n in range(2)}

    monkeypatch.setattr("commands.studies.running.main_py", measured)
    run("--settings", "PRoPE", "--jobs", "1")
    assert asked == [f"measure-responses PRoPE-loop-{seed} --interventions [TurnedCameras]" for seed in (0, 1)]
    run("--settings", "PRoPE")
    assert len(asked) == 2 and "0 of 2 trainings to run" in capsys.readouterr().out
    (row,) = [line for line in Path("studies/toys.md").read_text().splitlines() if "TurnedCameras" in line]
    cells = [cell.strip() for cell in row.split("|")[1:-1]]
    # (0.95 + 1.05) / 2 of the seeds
    assert cells[:3] == ["PRoPE, loop", "TurnedCameras", "panel_turn"] and cells[3].startswith("1.00 (")
    assert cells[-2:] == ["100%", "2 x 2"] and "## Responses" in Path("studies/toys.md").read_text()
    write(settings={**settings, "none": {"responses": ["TurnedCamera"]}})
    with pytest.raises(InputError, match="intervention TurnedCamera; .*TurnedCameras"):
        run()
