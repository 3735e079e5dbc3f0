"""python main.py report: the scores of metrics.json in every format, and remarks about incomplete runs."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from commands.report import report
from tests.commands.made_runs import CONFIG, answers, make_run
from tests.commands.reports.printing import cells, printed
from zoo.errors import InputError

COLUMNS = [
    *("Obj. Count", "Abs. Dist.", "Obj. Size", "Room Size", "Rel. Dist.", "Rel. Dir.", "Route Plan", "Appr. Order"),
    "Avg.",
]
TYPES = (
    *("object_counting", "object_abs_distance", "object_size_estimation", "room_size_estimation"),
    *("object_rel_distance", "object_rel_direction", "route_planning", "obj_appearance_order"),
)


def shown(result: dict[str, Any]) -> list[float]:
    """A row of scores as the report has them, from what metrics.json has."""
    scores = {kind: entry["score"] for kind, entry in result["per_question_type"].items()}
    directions = [score for kind, score in scores.items() if kind.startswith("object_rel_direction")]
    scores["object_rel_direction"] = sum(directions) / 3
    means = [result[group][mean] for group in ("acc", "mra", "all") for mean in ("micro", "macro")]
    return [*(scores[kind] for kind in TYPES), result["all"]["macro"], *means]


def expected(folder: Path) -> tuple[list[str], list[str]]:
    """The row of a run, with marks where the best constant has more, and that of the constant."""
    metrics = json.loads((folder / "metrics.json").read_text())
    own, constant = shown(metrics), shown(metrics["baselines"]["constant"])
    pairs = zip(own, constant, strict=True)
    return [f"{100 * s:.1f}{' <' if s < c else ''}" for s, c in pairs], [f"{100 * c:.1f}" for c in constant]


@pytest.mark.parametrize(
    "format", ["text", "html", *(pytest.param(each, marks=pytest.mark.slow) for each in ("markdown", "latex"))]
)
def test_formats_have_the_scores_of_metrics_json_in_the_published_order(tmp_path: Path, capsys, format) -> None:
    runs = [make_run(tmp_path / name, answers(180, seed=i)) for i, name in enumerate(("x/run", "y/run"))]
    capsys.readouterr()
    report([*map(str, runs), "--format", format, *(["--output", str(tmp_path / "r.html")] if format == "html" else [])])
    text = (tmp_path / "r.html").read_text() if format == "html" else capsys.readouterr().out
    rows = [cells(format, line) for line in text.split("\n")]
    assert ["Run", *COLUMNS] in rows
    for run in runs:
        name = f"{run.parent.name}/{run.name}"  # the shortest that is unique
        scores, means, *_ = [row[1:] for row in rows if row and row[0] == name]
        assert [*scores, *means[:6]] == expected(run)[0]
        assert means[6:] == ["180", "0", str(json.loads((run / "metrics.json").read_text())["counts"]["unparsable"])]
        settings = next(row for row in reversed(rows) if row and row[0] == name)
        said = [cell.replace("\\", "") for cell in settings[1:]]
        assert said[0] == "PRoPEMLLM" and said[2] == "24" and said[5] == "PRoPE(first)" and said[-1] == "spatial_mllm"
    constants = [
        row[1:] for row in rows if row and row[0] == "best constant answer"
    ]  # of both runs: the questions are equal
    assert [*constants[0], *constants[1][:6]] == expected(runs[0])[1] == expected(runs[1])[1]
    assert expected(runs[0])[0] != expected(runs[1])[0]  # the control: the rows could be told apart
    assert {cell[-2:] == " <" for cell in expected(runs[0])[0]} == {True, False}


def test_two_runs_are_compared_in_every_measure_and_more_in_two(tmp_path: Path, capsys) -> None:
    names = ("a", "b", "c")
    runs = [str(make_run(tmp_path / name, answers(90, seed=i))) for i, name in enumerate(names)]
    capsys.readouterr()
    report(runs[:2])
    said = capsys.readouterr().out
    assert "Differences from a on the same questions" in said and "10,000 resamples" in said
    assert len(re.findall(r"^b .*\[[+-]\d", said, re.MULTILINE)) == 8 + 6
    report(runs)
    assert len(re.findall(r"^[bc] .*\[[+-]\d", capsys.readouterr().out, re.MULTILINE)) == 2 * 2


def test_what_resampling_can_not_vary_has_no_interval(tmp_path: Path, capsys) -> None:
    """Questions of a type that are all about one scene, and a single question: [+4.4, +4.4] would feign certainty."""
    runs = []
    for seed, name in enumerate("ab"):
        records = [each for each in answers(90, seed=seed, scenes=5) if each["question_type"] != "route_planning"]
        plan = next(each for each in answers(90, seed=seed, scenes=5) if each["question_type"] == "route_planning")
        runs.append(make_run(tmp_path / name, [*records, plan]))
    rows = [cells("text", line) for line in printed(runs, capsys).splitlines()]
    found = {row[1]: row[3:5] for row in rows if row[0] == "b" and len(row) == 6}
    kinds = {each["question_type"]: each["scene"] for each in records}
    assert kinds["object_counting"] != kinds["object_rel_direction_easy"]
    assert found["Obj. Count"][0].startswith("[") and found["Obj. Count"][1] == "-"
    assert found["Route Plan"] == ["-", "-"]
    assert all(cell.startswith("[") for measure in ("Rel. Dir.", "All micro") for cell in found[measure])


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="no pdflatex here")
def test_latex_compiles_with_special_characters(tmp_path: Path) -> None:
    names = ("plain", "under_score 50% & $x^2$ #1 ~{a}\\b", "[ab]*<c>|d")
    runs = [make_run(tmp_path / name, answers(45, seed=i)) for i, name in enumerate(names)]
    report([*map(str, runs), "--output", str(tmp_path / "tables.tex")])
    document = r"\documentclass{article}\usepackage{booktabs}\begin{document}\input{tables.tex}\end{document}"
    (tmp_path / "paper.tex").write_text(document)
    command = ["pdflatex", "-halt-on-error", "-interaction=nonstopmode", "paper.tex"]
    made = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert made.returncode == 0, made.stdout[-2000:]
    (tmp_path / "tables.tex").write_text((tmp_path / "tables.tex").read_text().replace(r"\_", "_"))  # the control
    assert subprocess.run(command, cwd=tmp_path, capture_output=True).returncode != 0


def test_other_folders_are_skipped_and_untested_runs_listed(tmp_path: Path, capsys) -> None:
    make_run(tmp_path / "good", answers(45))
    make_run(tmp_path / "untested", None)
    (tmp_path / "folder").mkdir()
    (tmp_path / "notes.txt").write_text("")
    make_run(tmp_path / "torn", None)
    (tmp_path / "torn" / "config.yaml").write_text("model: [")
    make_run(tmp_path / "modelless", None, {"data": {}})
    capsys.readouterr()
    report([*map(str, sorted(tmp_path.iterdir())), str(tmp_path / "gone"), str(tmp_path / "good")])
    said = capsys.readouterr().out
    for reason in (
        "folder is not the folder of a run: it has no config.yaml",
        "notes.txt is not the folder of a run",
        "torn/config.yaml can't be read",
        "modelless/config.yaml names no model",
        "gone is not the folder of a run",
    ):
        assert len(re.findall(f"skipped: .*{re.escape(reason)}", said)) == 1
    assert f"skipped: {tmp_path / 'untested'}: no test yet" in said and said.count("no test yet") == 1
    assert not re.search("^untested", said, re.MULTILINE)  # no row of dashes
    assert len(re.findall("^good ", said, re.MULTILINE)) == 3  # named twice, reported once
    with pytest.raises(InputError, match="nothing to report: .*folder is not the folder of a run"):
        report([str(tmp_path / "folder")])


def test_answers_that_do_not_match_the_metrics_are_left_out(tmp_path: Path, capsys) -> None:
    """An interrupted test leaves the metrics of an earlier test, or none; the report notes both."""
    runs = [make_run(tmp_path / name, answers(45, seed=i)) for i, name in enumerate(("whole", "again", "first", "cut"))]
    for run, kept in zip(runs[1:], (3000, 3000, -20), strict=True):
        file = run / "predictions.jsonl"
        file.write_bytes(file.read_bytes()[:kept])
    (tmp_path / "first" / "metrics.json").unlink()
    (tmp_path / "whole" / "predictions.jsonl").rename(tmp_path / "whole" / "predictions.rank0.jsonl")
    capsys.readouterr()
    report([*map(str, runs), "--output", str(tmp_path / "r.html")])
    said = capsys.readouterr().out
    assert "whole has no predictions.jsonl" in said
    assert re.search("again/predictions.jsonl: line .* is incomplete", said)
    assert "again/predictions.jsonl doesn't match metrics.json" in said
    assert re.search(r"skipped: .*first: its test was interrupted after \d+ answers", said)
    assert "cut/predictions.jsonl doesn't match metrics.json" in said
    page = (tmp_path / "r.html").read_text()
    data = json.loads(re.search(r'id="data">(.*?)</script>', page, re.DOTALL)[1])
    assert data["answers"] == [None] * 3 and data["questions"] == []
    assert data["runs"] == ["whole", "again", "cut"] and None not in data["bars"]["Avg."]


def test_damaged_files_are_remarked_and_other_runs_reported(tmp_path: Path, capsys) -> None:
    runs = [make_run(tmp_path / name, answers(45)) for name in ("good", "metrics", "other", "answers")]
    (runs[1] / "metrics.json").write_text('{"acc"')
    (runs[2] / "metrics.json").write_text("{}")
    (runs[3] / "predictions.jsonl").write_text('{"id": 1}\n')
    report(list(map(str, runs)))
    said = capsys.readouterr().out
    assert re.search("skipped: .*metrics/metrics.json can't be read", said)
    assert re.search("skipped: .*other/metrics.json lacks entries of a test", said)
    assert "answers/predictions.jsonl, line 1: question_type must be a string, got null" in said
    assert len(re.findall(r"^answers +\d", said, re.MULTILINE)) == 2  # its scores are there all the same


def test_format_by_suffix_and_default_name_of_a_page(tmp_path: Path, capsys, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    make_run(tmp_path / "run", answers(9))
    report(["run", "--output", "a.md"])
    report(["run", "--output", "deep/a.tex"])
    report(["run", "--output", "a.txt"])
    report(["run", "--format", "html"])
    assert "report: 1 runs in report.html" in capsys.readouterr().out
    starts = {"a.md": "**Scores", "deep/a.tex": "% needs", "a.txt": "Scores by", "report.html": "<!doctype html>"}
    assert {name: Path(name).read_text()[: len(start)] for name, start in starts.items()} == starts


def test_settings_of_a_test(tmp_path: Path, capsys) -> None:
    config = yaml.safe_load(yaml.safe_dump(CONFIG))
    parts = config["model"]["init_args"]
    parts["backbone"] = {"class_path": "zoo.PretrainedQwen25VL", "init_args": {"path": "weights/3b"}}
    parts["fusion"] = {"class_path": "zoo.AddFusion", "init_args": {"branches": "both", "layers": [1, 2]}}
    parts["view_mixer"] = {"class_path": "zoo.ViewAttention", "init_args": {"head_dim": 32, "encoding": None}}
    parts["geometry"] = {"class_path": "zoo.TinyVGGT", "init_args": {}}  # what the model has built counts
    parts |= {"camera_source": "dataset", "time_index": {"class_path": "zoo.ConstantIndex"}}
    config["trainer"]["default_root_dir"] = "runs/mine"
    run = make_run(tmp_path / "run", answers(9), config)
    metrics = json.loads((run / "metrics.json").read_text())
    parts = {"source": "datamodules.VSIBench", "sampler": "SpaceAwareSampler", "frame_pairing": "my.Neighbor"}
    options = {"num_frames": 8, **{name: {"class_path": path} for name, path in parts.items()}}
    tested = {"data": {"class_path": "datamodules.VideoQADataModule", "init_args": options}}
    more = {"config": tested, "checkpoint": "runs/mine/checkpoints/a.ckpt", "geometry": "DatasetGeometry"}
    (run / "metrics.json").write_text(json.dumps({**metrics, **more}))
    fingerprint = json.loads((run / "test.json").read_text())["weights"]
    assert len(fingerprint) > 8
    report([str(run)])
    row = [line for line in capsys.readouterr().out.splitlines() if line.startswith("run ")][-1]
    assert re.split(" {2,}", row) == [
        *("run", "PRoPEMLLM", "VSIBench", "8", "SpaceAwareSampler", "Neighbor", "PRoPE(first)"),
        *("ViewAttention(32)", "AddFusion(both, [1, 2])", "DatasetGeometry", "dataset", "ConstantIndex"),
        *("weights/3b", "checkpoints/a.ckpt", fingerprint, "spatial_mllm"),
    ]


def test_the_settings_are_those_of_the_test(tmp_path: Path, capsys) -> None:
    """Which may differ from the training's, in its run's folder as well: `test --model.fusion.active_branches 2d`."""
    config = yaml.safe_load(yaml.safe_dump(CONFIG))
    both = {"class_path": "zoo.AddFusion", "init_args": {"active_branches": "both", "layers": [1, 2]}}
    config["model"]["init_args"] |= {"fusion": both, "initial_weights": "start.ckpt"}
    run = make_run(tmp_path / "run", answers(9), config)
    assert " AddFusion(both, [1, 2]) " in printed([run], capsys) and " PRoPE(first) " in printed([run], capsys)
    asked = {part: yaml.safe_load(yaml.safe_dump(config[part])) for part in ("model", "data")}
    asked["model"]["init_args"] |= {"fusion": {**both, "init_args": {"active_branches": "2d"}}, "camera_encoding": None}
    file = run / "metrics.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "config": asked}))
    said = printed([run], capsys)
    assert " AddFusion(2d) " in said and "both" not in said and "PRoPE(first)" not in said


def test_settings_that_were_added_to_a_model_have_columns(tmp_path: Path, capsys) -> None:
    plain = make_run(tmp_path / "plain", answers(9))
    headings = ("Objectives", "Augmentation", "Initial weights")
    assert not any(heading in printed([plain], capsys) for heading in headings)
    config = yaml.safe_load(yaml.safe_dump(CONFIG))
    objectives = [{"class_path": "zoo.CameraPrediction", "init_args": {"weight": 0.5}}]
    config["model"]["init_args"] |= {"objectives": objectives, "initial_weights": "start.ckpt", "time_index": None}
    config["data"]["init_args"]["augmentation"] = {"class_path": "datamodules.RandomFocalLength"}
    run = make_run(tmp_path / "run", answers(9), config)
    said = printed([run, plain], capsys)
    assert all(heading in said for heading in headings)
    row = r"^run .* \[CameraPrediction\(0\.5\)\] +RandomFocalLength +start\.ckpt "
    assert re.search(row, said, re.MULTILINE)


def test_every_test_of_a_run_is_listed(tmp_path: Path, capsys) -> None:
    run = make_run(tmp_path / "run", answers(90))
    make_run(run / "tests/subset-9", answers(9))
    capsys.readouterr()
    report([str(run)])
    said = capsys.readouterr().out
    assert [len(re.findall(f"^{name} ", said, re.MULTILINE)) for name in ("run", "run/subset-9")] == [3, 3]
    assert re.search(r"^run/subset-9 .* 9 +\d+ +\d+$", said, re.MULTILINE)


def test_of_equal_tests_at_several_steps_the_newest_counts(tmp_path: Path, capsys) -> None:
    run = make_run(tmp_path / "run", answers(90))
    folders = {run: 100, make_run(run / "tests/step-150", answers(90, seed=1)): 150}
    folders[make_run(run / "tests/subset-9", answers(9))] = 100  # of other questions
    for folder, step in folders.items():
        metrics = json.loads((folder / "metrics.json").read_text())
        (folder / "metrics.json").write_text(json.dumps({**metrics, "step": step}))
    capsys.readouterr()
    report([str(run)])
    said = capsys.readouterr().out
    assert f"skipped: {run}: its tests of step 150; those of step 100 are left out" in said
    assert not re.search("^run ", said, re.MULTILINE)
    assert all(len(re.findall(f"^run/{name} ", said, re.MULTILINE)) == 3 for name in ("step-150", "subset-9"))
