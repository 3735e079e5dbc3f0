"""python main.py report --verify: a run beside published numbers, within their rounding."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from commands.report import report
from tests.commands.made_runs import CONFIG, answers, make_run
from zoo.benchmarks import VSIBench
from zoo.errors import InputError

WEIGHTS = "Spatial-MLLM-v1.1-Instruct-135K"


@pytest.fixture
def run(tmp_path: Path, capsys) -> Path:
    """A tested run whose config names released weights."""
    config = yaml.safe_load(yaml.safe_dump(CONFIG))
    backbone = {"class_path": "zoo.PretrainedSpatialMLLM", "init_args": {"path": f"Diankun/{WEIGHTS}"}}
    config["model"]["init_args"]["backbone"] = backbone
    folder = make_run(tmp_path / "run", answers(190), config)
    capsys.readouterr()
    return folder


def rows_of(run: Path) -> dict[str, Any]:
    """The run's own numbers, as papers round them; the question types without those that share a column."""
    metrics = json.loads((run / "metrics.json").read_text())
    types = {kind: each["score"] for kind, each in metrics["per_question_type"].items()}
    percent = {group: round(100 * metrics[group]["macro"], 2) for group in ("acc", "mra", "all")}
    old = round(100 * sum(types.values()) / len(types), 2)
    return {
        "micro": {"all": round(100 * metrics["all"]["micro"], 1)},
        "macro_new": percent,
        "macro_old": {"all": old},
        "overall": round(100 * metrics["all"]["micro"], 2),
        VSIBench.numeric_types[0]: round(100 * types[VSIBench.numeric_types[0]], 2),
    }


def published(folder: Path, rows: dict[str, Any]) -> str:
    file = folder / "published.json"
    file.write_text(json.dumps({"note": "percent", "table": {"source": "a paper", "rows": rows}, "other": {"x": 1}}))
    return str(file)


def test_a_run_agrees_with_its_own_rounded_numbers(run: Path, tmp_path: Path, capsys) -> None:
    own = rows_of(run)
    assert own["macro_new"]["all"] != own["macro_old"]["all"]  # so that the two tell each other apart
    report([str(run), "--verify", published(tmp_path, {WEIGHTS: own, "another": {"micro": 3}})])
    said = capsys.readouterr().out
    assert f"run and table/{WEIGHTS}" in said and said.count(" yes") == 7 and "NO" not in said


def test_a_difference_beyond_the_rounding_fails(run: Path, tmp_path: Path, capsys) -> None:
    own = rows_of(run)
    own["overall"] = round(own["overall"] + 0.02, 2)
    file = published(tmp_path, {WEIGHTS: own})
    with pytest.raises(SystemExit) as stopped:
        report([str(run), "--verify", file, "--output", str(tmp_path / "verified.md")])
    written = (tmp_path / "verified.md").read_text()
    assert stopped.value.code == 1 and written.count("| NO ") == 1 and written.count("| yes ") == 6
    fraction = json.loads((run / "metrics.json").read_text())["all"]["micro"]  # published in full, as a fraction
    report([str(run), "--verify", published(tmp_path, {"log": {"micro": fraction}}), "--row", "table/log"])
    assert " yes" in capsys.readouterr().out


# the questions of VSI-Bench's types, numeric ones first
KIND = VSIBench.numeric_types[0]
COUNTS = dict(zip(VSIBench().question_types, (834, 565, 953, 288, 217, 378, 373, 710, 194, 618), strict=True))


@pytest.mark.skipif("ZOO_GOLDEN" not in os.environ, reason="ZOO_GOLDEN is unset: no published numbers")
@pytest.mark.parametrize("model", ["Qwen2.5-VL-7B", "Qwen3-VL-4B-Instruct"])
def test_an_official_table_agrees_with_itself(tmp_path: Path, capsys, model: str) -> None:
    """The published scores by type, with the benchmark's number of questions, give the published overall score."""
    file, table = Path(os.environ["ZOO_GOLDEN"]) / "published.json", "vsibench_64_frames_vlmevalkit"
    row = json.loads(file.read_text())[table]["rows"][model]
    folder = tmp_path / "run"
    scores = {kind: row[kind] / 100 for kind in COUNTS}
    write_test(folder, scores)
    report([str(folder), "--verify", str(file), "--row", f"{table}/{model}"])
    assert capsys.readouterr().out.count(" yes") == 11
    write_test(folder, scores | {KIND: scores[KIND] + 1e-3})
    with pytest.raises(SystemExit):
        report([str(folder), "--verify", str(file), "--row", f"{table}/{model}"])


def write_test(folder: Path, scores: dict[str, float]) -> None:
    """Leave a test in which all questions of a type have one score."""
    folder.mkdir(exist_ok=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(CONFIG))
    made_by = {"benchmark": "VSIBench", "scorer": "thinking_in_space"}
    truths = {kind: "1" if kind in VSIBench().numeric_types else "A" for kind in COUNTS}
    rows = [
        {
            "id": f"{kind}{n}",
            "question_type": kind,
            "prediction": "",
            "ground_truth": truths[kind],
            "score": scores[kind],
        }
        for kind, count in COUNTS.items()
        for n in range(count)
    ]
    (folder / "predictions.jsonl").write_text("".join(json.dumps(row | made_by) + "\n" for row in rows))
    metrics = VSIBench().aggregate({kind: [scores[kind]] * count for kind, count in COUNTS.items()})
    (folder / "metrics.json").write_text(json.dumps({**metrics, **made_by, "baselines": {"constant": metrics}}))


def test_bad_files_and_rows_are_one_line(run: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=f"no row of published numbers named '{WEIGHTS}': choose a --row of table/"):
        report([str(run), "--verify", published(tmp_path, {"Spatial-MLLM": {"micro": 3}})])
    with pytest.raises(InputError, match="shares no measure with VSIBench"):
        report([str(run), "--verify", published(tmp_path, {WEIGHTS: {"cider": 91.8, "scene": 2}})])
    with pytest.raises(InputError, match="shares no measure with VSIBench"):
        report([str(run), "--verify", published(tmp_path, {WEIGHTS: {"micro": None}})])
    for content, reason in (("[1]", "holds no published numbers"), ("{", "holds no"), ('{"a": {}}', "has no rows")):
        (tmp_path / "bad.json").write_text(content)
        with pytest.raises(InputError, match=f"bad.json {reason}"):
            report([str(run), "--verify", str(tmp_path / "bad.json")])
    with pytest.raises(InputError, match="gone.json holds no published numbers"):
        report([str(run), "--verify", str(tmp_path / "gone.json")])


def test_caption_metrics_are_reported_and_compared(run: Path, tmp_path: Path, capsys) -> None:
    file = run / "metrics.json"
    captions = {"bleu_4": 0.1174, "cider": 0.91765, "tokenizer": "PTB", "skipped": {}}
    file.write_text(json.dumps({**json.loads(file.read_text()), "captions": captions}))
    report([str(run), "--verify", published(tmp_path, {WEIGHTS: {"cider": 91.8, "bleu_4": 11.7}})])
    assert capsys.readouterr().out.count(" yes") == 2
    with pytest.raises(SystemExit):  # what was not measured agrees with nothing
        report([str(run), "--verify", published(tmp_path, {WEIGHTS: {"cider": 91.8, "bleu_4": 11.7, "em": 26.3}})])
    assert re.search(r"em +26\.3 +not measured +NO", capsys.readouterr().out)
    report([str(run)])
    assert re.search(r"bleu_4 +cider\n.*\nrun .* 11\.7 +91\.8\n", capsys.readouterr().out)
