"""Benchmarks of one's own, by a class or by settings, run through data, metric, test, `score` and `report`."""

from __future__ import annotations

import json
import re
import sys
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
from datamodules.sources import Conversations
from docs.scorers import in_words
from tests.callbacks.toy import Toy, record, trainer
from tests.cli import Run
from tests.commands.made_runs import CONFIG, answers, make_run
from tests.signatures import PACKAGES
from zoo.backbones import tiny_preprocessor
from zoo.benchmarks import Benchmark, OwnQuestions, VSIBench, find_benchmark
from zoo.benchmarks.scorers import read_any_number
from zoo.errors import InputError
from zoo.metrics import BenchmarkScore

ROOT = Path(__file__).parents[1]


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
RECORDS = [
    record("a", "legs", "4", "4", scene="toy/1"),
    record("b", "legs", "4 legs", "4", scene="toy/1"),
    record("c", "color", "red", "blue", scene="toy/2"),
    record("d", "color", "", "red", scene="toy/2"),
]


class ColorScenes(SceneFolder):
    benchmark = Colors()


CONFIG = {**CONFIG, "data": {"class_path": "datamodules.VideoQADataModule", "init_args": {"num_frames": 24}}}


@pytest.fixture
def tested(tmp_path: Path, capsys) -> Path:
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


def test_metric_table_and_files_work_for_another_benchmark(tested: Path, capsys) -> None:
    metric = BenchmarkScore(Colors())
    metric.update(*([each[key] for each in RECORDS] for key in ("prediction", "ground_truth", "question_type", "id")))
    result = metric.compute()
    assert result["per_question_type"] == {"legs": {"score": 0.5, "count": 2}, "color": {"score": 0.0, "count": 2}}
    assert result["all"] == {"micro": 0.25, "macro": 0.25}
    printed = capsys.readouterr().out
    assert re.search(r"legs\W+0\.500 <\W+1\.000\W+2\b", printed) and "1 answer could not be parsed" in printed
    written = json.loads((tested / "metrics.json").read_text())
    assert {key: written[key] for key in result} == result
    assert (written["benchmark"], written["scorer"]) == (COLORS, "exact")
    lines = [json.loads(line) for line in (tested / "predictions.jsonl").read_text().split("\n") if line]
    assert [line["score"] for line in lines] == [1.0, 0.0, 0.0, 0.0]
    assert {(line["benchmark"], line["scorer"]) for line in lines} == {(COLORS, "exact")}


def test_score_and_report_work_for_another_benchmark(tested: Path, tmp_path: Path, capsys) -> None:
    """The file names its benchmark; the tables name it as well, and its numbers are no mean relative accuracy."""
    score([str(tested), "--scorer", "lenient"])
    said = capsys.readouterr().out
    assert re.search(r"legs\W+1\.000", said) and f": {COLORS}\n" in said and "| numbers" in said and "MRA" not in said
    with pytest.raises(InputError, match="line 1: unknown question_type 'legs'; VSIBench has"):
        score([str(tested), "--benchmark", "VSIBench"])
    with pytest.raises(InputError, match="unknown benchmark 'Colours'; choose from .*VSIBench"):
        score([str(tested), "--benchmark", "Colours"])
    with pytest.raises(InputError, match=f"unknown scorer 'vsi'; {COLORS} has exact, lenient"):
        score([str(tested), "--benchmark", "Colors", "--scorer", "vsi"])
    other = make_run(tmp_path / "other", answers(18))
    capsys.readouterr()
    report([str(tested), str(other)])
    printed = capsys.readouterr().out
    assert re.search(rf"^{COLORS}, scorer exact, 4 questions about 2 scenes", printed, re.MULTILINE)
    assert re.search(r" +Legs +Color +macro +micro\n.*\nrun +50\.0 < +0\.0 < +25\.0 < +25\.0 <\n", printed)
    assert "\nVSIBench, scorer spatial_mllm, 18 questions" in printed  # in a table of its own
    assert "MRA" not in printed


def test_a_benchmark_that_the_file_of_someone_else_names_is_not_imported(tested: Path, tmp_path: Path) -> None:
    """In the folder `runs` of the user it is; elsewhere --benchmark says that it may be."""
    file = tested / "predictions.jsonl"
    file.write_text(file.read_text().replace(COLORS, "antigravity.Flight"))
    with pytest.raises(InputError, match="unknown benchmark 'antigravity.Flight'.*pass --benchmark antigravity.Flight"):
        score([str(file)])
    scores = tested / "metrics.json"
    scores.write_text(scores.read_text().replace(COLORS, "antigravity.Flight"))
    with pytest.raises(InputError, match="unknown benchmark 'antigravity.Flight'"):
        report([str(tested)])
    assert "antigravity" not in sys.modules


def test_questions_filters_and_prompts_are_those_of_the_sources_benchmark(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=f"unknown question_type 'route_planning'; {COLORS} has legs, color"):
        VideoQADataModule(ColorScenes(str(tmp_path)), question_types=["route_planning"])
    row = {"id": 1, "dataset": "d", "scene_name": "s", "question": "?", "ground_truth": "4"}
    (tmp_path / "test.jsonl").write_text(json.dumps({**row, "question_type": "route_planning"}))
    with pytest.raises(ValueError, match=f"test.jsonl:1: unknown question_type 'route_planning'; {COLORS} has legs"):
        ColorScenes(str(tmp_path)).scenes("test")
    (tmp_path / "test.jsonl").write_text(json.dumps({**row, "question_type": "legs"}))
    assert list(ColorScenes(str(tmp_path)).scenes("test")) == []  # valid, and its video is missing
    question = Question("1", "legs", "How many legs?")
    assert "Q: How many legs? <" in ChatFormat(tiny_preprocessor(), Colors()).prompt(question)
    assert "single word or phrase" in ChatFormat(tiny_preprocessor()).prompt(question)  # the control


def test_no_other_file_names_a_question_type() -> None:
    named, places = re.compile("|".join(VSIBench().question_types)), ("zoo/benchmarks", "datamodules/sources/rooms")
    files = [file for package in PACKAGES for file in ROOT.glob(f"{package}/**/*.py")]
    naming = {str(file.relative_to(ROOT)) for file in files if named.search(file.read_text(encoding="utf-8"))}
    assert naming and [name for name in sorted(naming) if not name.startswith(places)] == []


def test_types_by_settings() -> None:
    own = OwnQuestions({"door_width": "number", "side": "choice", "color": "text"})
    scores = [("0.9 m", "0.9", "door_width"), ("B", "B", "side"), ("a red", "blue\nRed.", "color"), ("", "", "color")]
    assert [own.score(*answer, "spatial_mllm") for answer in scores] == [0.0, 1.0, 1.0, 0.0]
    assert own.score("0.9", "0.9", "door_width", "spatial_mllm") == 1.0
    again = find_benchmark(own.name)
    assert isinstance(again, OwnQuestions) and again.types == own.types and again.columns == own.columns
    for types, message in (({}, "no question types"), ({"a b": "number"}, "is no name")):
        with pytest.raises(InputError, match=message):
            OwnQuestions(types)


def test_a_class_of_ones_own_is_found_by_its_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine_doors.py").write_text(
        "from zoo.benchmarks.base import SpatialBenchmark\n"
        "class Doors(SpatialBenchmark):\n"
        "    numeric_types, scorers, columns = ('width',), ('spatial_mllm',), {'Width': ('width',)}\n"
        "    number_instruction = 'In meters.'\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "mine_doors", raising=False)
    with pytest.raises(InputError, match="unknown benchmark"):
        find_benchmark("mine_doors.Doors", trusted=False)
    assert "mine_doors" not in sys.modules
    assert find_benchmark("mine_doors.Doors").name == "mine_doors.Doors"
    for path, message in (("mine_doors.Gone", r"Gone can't be imported"), ("json.JSONDecoder", "unknown benchmark")):
        with pytest.raises(InputError, match=message):
            find_benchmark(path)


def test_a_test_on_conversations(run: Run, tmp_path: Path, rooms_root: Path, capsys: pytest.CaptureFixture) -> None:
    """Three questions about each video: a number, a text, and one of a type that is left out."""
    rows = []
    for video in sorted(rooms_root.glob("*/rooms/test_*.mp4")):
        for kind, asked, answer in (
            ("door_width", "How wide?", "0.9"),
            ("color", "Which?", "red"),
            ("", "Why?", "So."),
        ):
            talk = [{"from": "human", "value": f"<video>\n{asked}"}, {"from": "gpt", "value": answer}]
            rows.append({"video": str(video), "question_type": kind, "conversations": talk})
    path = tmp_path / "asked.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    own = OwnQuestions({"door_width": "number", "color": "text"})
    source = Conversations(str(path), evaluation=True, benchmark=own)
    questions = [question.question_type for scene in source.scenes("test") for question in scene.questions]
    assert questions == ["door_width", "color"] * 3
    for evaluation, split in ((True, "train"), (False, "test")):
        with pytest.raises(ValueError, match="evaluation"):
            Conversations(str(path), evaluation=evaluation, benchmark=own).scenes(split)

    words = ["--data.source", "Conversations", "--data.source.path", str(path), "--data.source.evaluation", "true"]
    words += ["--data.source.benchmark", "OwnQuestions", "--data.question_types", "null"]
    words += ["--data.source.benchmark.types", "{door_width: number, color: text}"]
    run("test", "--config", "qwen25_vl.yaml", "--model.allow_untrained", "true", *words)
    (folder,) = tmp_path.glob("runs/*")
    metrics = json.loads((folder / "metrics.json").read_text())
    assert metrics["benchmark"] == own.name
    assert {kind: each["count"] for kind, each in metrics["per_question_type"].items()} == {"door_width": 3, "color": 3}
    assert metrics["baselines"]["constant"]["all"]["micro"] == 1  # every answer is the same
    for command, words in (report, ()), (score, ("--benchmark", own.name)):
        capsys.readouterr()
        command([str(folder), *words])
        assert "door_width" in capsys.readouterr().out


def test_every_number_in_words_is_read_back() -> None:
    assert [read_any_number(in_words(number)) for number in range(1, 1000)] == list(range(1, 1000))
