"""python main.py score: the table and scores of a test, and errors of invalid files."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch.callbacks import Callback

from callbacks import MetricsCallback
from commands.reports.scores import load
from commands.score import score
from tests.callbacks.toy import Toy, record, trainer
from tests.commands.made_runs import answers, make_run
from zoo.errors import InputError

RESULT = ("per_question_type", "acc", "mra", "all", "failed_scenes", "benchmark", "scorer")


def finished_run(folder: Path, scenes: list[list[dict[str, Any]]] | None = None, scorer: str | None = None) -> Path:
    """The folder of a run that was tested: metrics.json, predictions.jsonl."""
    callbacks: tuple[Callback, ...] = (MetricsCallback(scorer),)
    trainer(folder, *callbacks).test(Toy(scenes), verbose=False)
    return folder


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]


def write_lines(path: Path, records: list[dict[str, Any]], end: str = "\n") -> Path:
    path.write_text("\n".join(json.dumps(each) for each in records) + end)
    return path


@pytest.mark.parametrize("scorer", ["spatial_mllm", "thinking_in_space"])
def test_scores_and_table_equal_those_of_the_test(tmp_path: Path, capsys, scorer: str) -> None:
    run = finished_run(tmp_path / "run", scorer=scorer)
    of_the_test = capsys.readouterr().out
    score([str(run / "predictions.jsonl"), "--scorer", scorer, "--output", str(tmp_path / "new" / "metrics.json")])
    said = capsys.readouterr().out
    table = [line for line in said.split("\n")[1:] if line]  # the title names the file
    assert len(table) > 15 and all(line in of_the_test for line in table)
    written, again = (json.loads(file.read_text()) for file in (run / "metrics.json", tmp_path / "new/metrics.json"))
    assert {key: written[key] for key in RESULT} == {key: again[key] for key in RESULT}
    assert again["counts"] == {key: written["counts"][key] for key in ("questions", "failed", "unparsable")}
    assert written["counts"]["failed"] == 18


def test_the_baselines_of_the_test_are_kept_for_its_own_scorer(tmp_path: Path, capsys) -> None:
    run = finished_run(tmp_path / "run")
    written = json.loads((run / "metrics.json").read_text())
    text = {key: written[key] for key in ("per_question_type", "acc", "mra", "all")}
    recorded = {**written["baselines"], "text": text}
    (run / "metrics.json").write_text(json.dumps({**written, "baselines": recorded}))
    for words, output in ((), "again"), (("--scorer", "thinking_in_space"), "other"):
        capsys.readouterr()
        score([str(run), *words, "--output", str(tmp_path / f"{output}.json")])  # the run's folder serves as well
        said = capsys.readouterr().out
        assert "constant" in said and ("scores that differ from the file's" in said) == bool(words)
    again, other = (json.loads((tmp_path / f"{name}.json").read_text())["baselines"] for name in ("again", "other"))
    assert again == recorded and other.keys() == {"constant"} and other != {"constant": recorded["constant"]}


def test_the_scores_of_the_file_stand_unless_another_scorer_is_named(tmp_path: Path, capsys) -> None:
    fields = {"question_type": "object_counting", "ground_truth": "4"}
    score([str(write_lines(tmp_path / "four.jsonl", [{"id": 7, "prediction": "4", **fields}]))])  # these are enough
    assert "1.000" in capsys.readouterr().out
    fields["benchmark"] = "VSIBench"
    rows = [{"id": str(i), "prediction": "4", **fields, "scorer": "geovr", "score": 0.25} for i in range(2)]
    file = write_lines(tmp_path / "answers.jsonl", rows)
    for arguments, scorer, shown in (
        ([], "geovr", "0.250"),
        (["--scorer", "geovr"], "geovr", "0.250"),
        (["--scorer", "spatial_mllm"], "spatial_mllm", "1.000"),
    ):
        score([str(file), *arguments])
        row = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("| all"))
        assert shown in row and scorer in row


@pytest.mark.parametrize("cut", [1, 200])
def test_a_half_written_last_line_is_dropped_with_a_remark(tmp_path: Path, capsys, cut: int) -> None:
    run = finished_run(tmp_path)
    file = run / "predictions.jsonl"
    whole = lines(file)
    content = file.read_bytes()
    assert b"\xe2\x80\xa8" in content  # characters of several bytes, which a cut can halve
    file.write_bytes(content[: -1 - cut])
    score([str(file)])
    said = capsys.readouterr().out
    assert f"{len(whole) - 1} questions" in said and f"line {len(whole)}, the last, is incomplete" in said
    file.write_bytes(content[:-1])  # only its end is lost: the line is whole
    score([str(file)])
    said = capsys.readouterr().out
    assert f"{len(whole)} questions" in said and "incomplete" not in said
    file.write_bytes(content[cut + 1 :])  # cut within the file
    with pytest.raises(InputError, match=r"predictions\.jsonl, line 1: not valid JSON"):
        score([str(file)])


def test_repeated_lines_count_once_and_two_answers_to_a_question_are_refused(tmp_path: Path, capsys) -> None:
    file = finished_run(tmp_path) / "predictions.jsonl"
    whole = lines(file)
    once = len(whole)
    write_lines(file, [*whole, whole[0], whole[5]])
    score([str(file)])
    said = capsys.readouterr().out
    assert f"{once} questions" in said and "2 lines repeat an earlier one: dropped" in said
    write_lines(file, [*whole, {**whole[0], "prediction": "something else"}])
    refused = rf"line {once + 1}: question {whole[0]['id']} has another prediction in line 1"
    with pytest.raises(InputError, match=refused):
        score([str(file)])


def test_empty_and_endless_answers_score_zero(tmp_path: Path, capsys) -> None:
    answers = ["", "4" * 10_000, "word " * 2_000, "4"]
    rows = [record(str(i), "object_counting", answer, "4") for i, answer in enumerate(answers)]
    score([str(write_lines(tmp_path / "answers.jsonl", rows)), "--output", str(tmp_path / "metrics.json")])
    written = json.loads((tmp_path / "metrics.json").read_text())
    assert written["all"]["micro"] == 0.25 and written["counts"]["unparsable"] == 3
    assert "3 answers could not be parsed" in capsys.readouterr().out


def test_half_a_character_in_a_scene_name_can_be_written(tmp_path: Path) -> None:
    row = record("a", "object_counting", "", "4", scene="toy/\ud83d", error="no video")
    score([str(write_lines(tmp_path / "answers.jsonl", [row])), "--output", str(tmp_path / "metrics.json")])
    assert json.loads((tmp_path / "metrics.json").read_text())["counts"]["failed"] == 1


GOOD = record("a", "object_counting", "4", "4")
NO_SCORES = (float("nan"), float("inf"), 7, -3, 1.5, True, "1.0", [1])


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        ({**GOOD, "id": None}, "line 2: id must be"),
        ({key: value for key, value in GOOD.items() if key != "prediction"}, "line 2: prediction must be a string"),
        ({**GOOD, "question_type": "riddle"}, "line 2: unknown question_type 'riddle'"),
        ({**GOOD, "frames": "all"}, 'line 2: frames must be a list of integers, got "all"'),
        ([GOOD], "line 2: expected an object"),
        *(({**GOOD, "score": score}, "line 2: score must be a number in 0..1") for score in NO_SCORES),
    ],
)
def test_invalid_lines_are_named_with_file_and_line(tmp_path: Path, bad: Any, said: str) -> None:
    file = write_lines(tmp_path / "answers.jsonl", [GOOD, bad, GOOD])
    with pytest.raises(InputError) as error:
        score([str(file)])
    assert str(error.value).startswith(f"{file}, {said}") and "\n" not in str(error.value)


def test_an_absent_score_is_computed_and_a_failed_question_scores_0(tmp_path: Path, capsys) -> None:
    """Whatever the file says, in `score` as in `report`."""
    run = make_run(tmp_path / "run", answers(90, right=1.0))
    records = lines(run / "predictions.jsonl")
    records[0]["error"] = "no video"  # and a score of 1
    records[1]["score"] = None
    del records[2]["score"]
    records[3]["error"] = ""  # is none
    write_lines(run / "predictions.jsonl", records)
    score([str(run), "--output", str(tmp_path / "scores.json")])
    (run / "metrics.json").write_bytes((tmp_path / "scores.json").read_bytes())
    assert "1 question of 1 scene failed: score 0" in capsys.readouterr().out
    written = json.loads((run / "metrics.json").read_text())
    assert written["all"]["micro"] == pytest.approx(89 / 90) and written["counts"]["questions"] == 90
    (tested,), (note,) = load([run])
    assert tested.questions["score"].tolist() == [0, *[1] * 89] and "failed and score 0: 1" in note


def test_an_interrupted_test_of_several_processes_is_noted(tmp_path: Path, capsys) -> None:
    run = finished_run(tmp_path)
    (run / "predictions.rank1.jsonl").write_text("")
    capsys.readouterr()
    score([str(run)])
    assert "interrupted: the answers in predictions.rank1.jsonl are not scored" in capsys.readouterr().out
    (run / "predictions.jsonl").write_text("")
    with pytest.raises(InputError, match="interrupted; run the test again, or score .*predictions.rank1.jsonl"):
        score([str(run)])


def test_files_with_nothing_to_score_are_refused(tmp_path: Path, capsys) -> None:
    with pytest.raises(InputError, match="nothing.jsonl can't be read"):
        score([str(tmp_path / "nothing.jsonl")])
    (tmp_path / "empty.jsonl").write_text("\n")
    with pytest.raises(InputError, match="has no answers"):
        score([str(tmp_path / "empty.jsonl")])
    unknown = [record("a", "object_counting", "4", "")]
    with pytest.raises(InputError, match="no answer has a ground_truth"):
        score([str(write_lines(tmp_path / "asked.jsonl", unknown))])
    score([str(write_lines(tmp_path / "some.jsonl", [*unknown, record("b", "object_counting", "4", "4")]))])
    assert "not scored, without a ground truth: 1" in capsys.readouterr().out
    with pytest.raises(InputError, match="can't be written"):
        (tmp_path / "file").write_text("")
        score([str(tmp_path / "some.jsonl"), "--output", str(tmp_path / "file" / "metrics.json")])


def test_all_scorers_side_by_side(tmp_path: Path, capsys) -> None:
    """Counts checked against the scores of each scorer alone."""
    rows = [
        *(("a", "object_counting", "4", "4"), ("b", "object_counting", "about 4", "4")),
        *(("c", "route_planning", "A", "A"), ("d", "route_planning", "A. Turn left", "A")),
        ("e", "object_counting", "four", "4"),
    ]
    names = ("id", "question_type", "prediction", "ground_truth")
    file = write_lines(tmp_path / "answers.jsonl", [dict(zip(names, row, strict=True)) for row in rows])
    score([str(file), "--scorer", "all"])
    said = capsys.readouterr().out
    assert re.search(r"question type +\| spatial_mllm +\| thinking_in_space +\| lmms_eval_0.7.3", said)
    for shown in (
        r"object_counting \| 0.333 <? ?\| 0.333 <? ?\| 1.000",
        r"route_planning \| 0.500 <? ?\| 1.000 \| 1.000",
        r"could not be parsed \| 3 \| 2 \| 0",
        "answers on which scorers differ: 3 of 5",
        "spatial_mllm and thinking_in_space: 1",
        "thinking_in_space and lmms_eval_0.7.3: 2",
    ):
        assert re.search(shown, re.sub(" +", " ", said)), shown
    with pytest.raises(InputError, match="--output holds the scores of one scorer"):
        score([str(file), "--scorer", "all", "--output", str(tmp_path / "metrics.json")])


def test_answers_to_another_benchmark_are_refused(tmp_path: Path, capsys) -> None:
    """By a question type that the benchmark lacks, or if another one is named than the file records."""
    row = {"id": 1, "question_type": "room_size_estimation_single", "prediction": "9", "ground_truth": "9"}
    file = write_lines(tmp_path / "answers.jsonl", [row])
    with pytest.raises(
        InputError, match=r"line 1: unknown question_type .* it is one of ReVSI \(score --benchmark ReVSI"
    ):
        score([str(file)])
    score([str(file), "--benchmark", "ReVSI"])
    assert "| revsi " in capsys.readouterr().out
    shared = {**row, "question_type": "route_planning", "ground_truth": "A", "benchmark": "ReVSI"}
    score([str(write_lines(file, [shared]))])  # the first line names the benchmark
    assert "| revsi " in capsys.readouterr().out
    with pytest.raises(InputError, match="line 1: an answer to ReVSI, not to VSIBench: score --benchmark ReVSI"):
        score([str(file), "--benchmark", "VSIBench"])
    score([str(write_lines(file, [{**shared, "benchmark": None}]))])  # null is none
    assert lines(finished_run(tmp_path / "run") / "predictions.jsonl")[0]["benchmark"] == "VSIBench"


def test_the_answers_are_not_overwritten(tmp_path: Path) -> None:
    row = {"id": 1, "question_type": "object_counting", "prediction": "2", "ground_truth": "2"}
    file = write_lines(tmp_path / "answers.jsonl", [row])
    (tmp_path / "metrics.json").write_text('{"of": "a test"}')
    for name in ("answers.jsonl", "metrics.json"):
        before = (tmp_path / name).read_bytes()
        with pytest.raises(InputError, match=rf"--output .*{name} is there already"):
            score([str(file), "--output", str(tmp_path / "." / name)])
        assert (tmp_path / name).read_bytes() == before
    for truth in ("2", "3"):  # the control: former scores are replaced
        write_lines(file, [{**row, "ground_truth": truth}])
        score([str(file), "--output", str(tmp_path / "scores.json")])
    assert json.loads((tmp_path / "scores.json").read_text())["all"]["micro"] < 1


@pytest.mark.parametrize("truth", ["2 m", "two", "(A)"])
def test_a_ground_truth_that_no_answer_can_match_is_named_by_its_line(truth: str, tmp_path: Path) -> None:
    row = {"id": 1, "question_type": "object_counting", "prediction": "2", "ground_truth": truth}
    with pytest.raises(InputError, match="line 2: ground_truth .*object_counting"):
        score([str(write_lines(tmp_path / "answers.jsonl", [{**row, "id": 0, "ground_truth": "2"}, row]))])
