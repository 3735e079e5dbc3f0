"""Another benchmark runs through metric, callbacks, table, score and report; nothing else knows VSI-Bench's types."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path

import pytest
import yaml

from callbacks import MetricsCallback
from commands.report import report
from commands.score import score
from datamodules import SceneFolder, VideoQADataModule
from datamodules.chat_format import ChatFormat
from datamodules.scenes import Question
from tests.callbacks.toy import Toy, record, trainer
from tests.commands.made_runs import CONFIG, answers, make_run
from zoo.backbones import tiny_preprocessor
from zoo.benchmarks import Benchmark, VSIBench
from zoo.errors import InputError
from zoo.metrics import BenchmarkScore

ROOT = Path(__file__).parents[1]
NAMED_BY = ("zoo/benchmarks", "datamodules/sources/rooms")


class Colors(Benchmark):
    """Two types: a color and a number of legs."""

    numeric_types = ("legs",)
    multiple_choice_types = ("color",)
    scorers = ("exact", "lenient")
    columns = {"Legs": ("legs",), "Color": ("color",)}

    def user_text(self, question: str, options: Sequence[str] = (), *, prefix: str = "") -> str:
        return f"{prefix}Q: {question} {'/'.join(options)}"

    def score(self, prediction: str, ground_truth: str, question_type: str, scorer: str) -> float:
        self.check_question_type(question_type)
        return float(prediction == ground_truth if scorer == "exact" else ground_truth in prediction)

    def is_parsable(self, prediction: str, question_type: str, scorer: str) -> bool:
        return bool(prediction)


COLORS = f"{Colors.__module__}.Colors"  # as commands name it


class ColorScenes(SceneFolder):
    benchmark = Colors()


RECORDS = [
    record("a", "legs", "4", "4", scene="toy/1"),
    record("b", "legs", "4 legs", "4", scene="toy/1"),
    record("c", "color", "red", "blue", scene="toy/2"),
    record("d", "color", "", "red", scene="toy/2"),
]
CONFIG = {**CONFIG, "data": {"class_path": "datamodules.VideoQADataModule", "init_args": {"num_frames": 24}}}


@pytest.fixture
def run(tmp_path: Path, capsys) -> Path:
    """A tested run on the benchmark."""
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "config.yaml").write_text(yaml.safe_dump(CONFIG))
    (tmp_path / "data/toy").mkdir(parents=True)
    row = {"id": 1, "dataset": "toy", "scene_name": "1", "question_type": "legs", "question": "?", "ground_truth": "4"}
    (tmp_path / "data/test.jsonl").write_text(json.dumps(row))
    (tmp_path / "data/toy/1.mp4").touch()
    data = VideoQADataModule(ColorScenes(str(tmp_path / "data")), question_types=["legs"])
    tester = trainer(folder, MetricsCallback())
    model = Toy([RECORDS])
    data.prepare_data = lambda: None
    data.test_dataloader = model.test_dataloader
    tester.test(model, datamodule=data, verbose=False)
    return folder


def test_metric_table_and_files_work_for_another_benchmark(run: Path, capsys) -> None:
    metric = BenchmarkScore(Colors())
    metric.update(*([each[key] for each in RECORDS] for key in ("prediction", "ground_truth", "question_type", "id")))
    result = metric.compute()
    assert result["per_question_type"] == {"legs": {"score": 0.5, "count": 2}, "color": {"score": 0.0, "count": 2}}
    assert result["all"] == {"micro": 0.25, "macro": 0.25}
    printed = capsys.readouterr().out
    assert re.search(r"legs\W+0\.500 <\W+1\.000\W+2\b", printed) and "1 answer could not be parsed" in printed
    written = json.loads((run / "metrics.json").read_text())
    assert {key: written[key] for key in result} == result
    assert (written["benchmark"], written["scorer"]) == (COLORS, "exact")
    lines = [json.loads(line) for line in (run / "predictions.jsonl").read_text().split("\n") if line]
    assert [line["score"] for line in lines] == [1.0, 0.0, 0.0, 0.0]
    assert {(line["benchmark"], line["scorer"]) for line in lines} == {(COLORS, "exact")}


def test_score_and_report_work_for_another_benchmark(run: Path, tmp_path: Path, capsys) -> None:
    score([str(run), "--benchmark", "Colors", "--scorer", "lenient"])
    assert re.search(r"legs\W+1\.000", capsys.readouterr().out)
    with pytest.raises(InputError, match="line 1: unknown question_type 'legs'; VSIBench has"):
        score([str(run)])
    with pytest.raises(InputError, match="unknown benchmark 'Colours'; choose from .*VSIBench"):
        score([str(run), "--benchmark", "Colours"])
    with pytest.raises(InputError, match=f"unknown scorer 'vsi'; {COLORS} has exact, lenient"):
        score([str(run), "--benchmark", "Colors", "--scorer", "vsi"])
    other = make_run(tmp_path / "other", answers(18))
    capsys.readouterr()
    report([str(run), str(other)])
    printed = capsys.readouterr().out
    assert re.search(r"Run +Legs +Color +Avg\.\n.*\nrun +50\.0 < +0\.0 < +25\.0 <", printed)
    assert f"other was tested on VSIBench, not {COLORS}: report it separately" in printed
    report([str(run), "--output", str(tmp_path / "page.html")])
    assert '"types":["legs","color"]' in (tmp_path / "page.html").read_text()


def test_questions_and_filters_are_checked_against_the_sources_benchmark(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=f"unknown question_type 'route_planning'; {COLORS} has legs, color"):
        VideoQADataModule(ColorScenes(str(tmp_path)), question_types=["route_planning"])
    row = {"id": 1, "dataset": "d", "scene_name": "s", "question": "?", "ground_truth": "4"}
    (tmp_path / "test.jsonl").write_text(json.dumps({**row, "question_type": "route_planning"}))
    with pytest.raises(ValueError, match=f"test.jsonl:1: unknown question_type 'route_planning'; {COLORS} has legs"):
        ColorScenes(str(tmp_path)).scenes("test")
    (tmp_path / "test.jsonl").write_text(json.dumps({**row, "question_type": "legs"}))
    assert list(ColorScenes(str(tmp_path)).scenes("test")) == []  # valid, and its video is missing


def test_the_prompt_has_the_benchmarks_wording() -> None:
    question = Question("1", "legs", "How many legs?")
    assert "Q: How many legs? <" in ChatFormat(tiny_preprocessor(), Colors()).prompt(question)
    assert "single word or phrase" in ChatFormat(tiny_preprocessor()).prompt(question)  # negative control


def test_no_other_file_names_a_question_type() -> None:
    named = re.compile("|".join(VSIBench().question_types))
    packages = ("zoo", "datamodules", "callbacks", "commands")
    files = [file for package in packages for file in (ROOT / package).rglob("*") if file.suffix in (".py", ".js")]
    naming = {str(file.relative_to(ROOT)) for file in files if named.search(file.read_text(encoding="utf-8"))}
    assert [name for name in sorted(naming) if not name.startswith(NAMED_BY)] == []
    assert any(name.startswith(NAMED_BY[0]) for name in naming)  # negative control
