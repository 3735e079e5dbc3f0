"""Question types of one's own, by settings or by a class, and conversations that are scored."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from commands.report import report
from commands.score import score
from datamodules.sources import Conversations
from tests.cli import Run
from zoo.benchmarks import OwnQuestions, VSIBench, find_benchmark
from zoo.errors import InputError

MINE = """
from zoo.benchmarks.base import SpatialBenchmark
from zoo.benchmarks.scorers import SCORERS

class Doors(SpatialBenchmark):
    numeric_types = ("door_width",)
    scorers = tuple(SCORERS)
    columns = {"Width": ("door_width",)}
    number_instruction = "In meters."
"""


def talk(folder: Path, videos: list[Path]) -> Path:
    """Three questions about each video: a number, a text, and one of a type that is left out."""
    rows = []
    for video in videos:
        for kind, asked, answer in (
            ("door_width", "How wide?", "0.9"),
            ("color", "Which?", "red"),
            ("", "Why?", "So."),
        ):
            turns = [{"from": "human", "value": f"<video>\n{asked}"}, {"from": "gpt", "value": answer}]
            rows.append({"video": str(video), "question_type": kind, "conversations": turns})
    path = folder / "asked.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_types_by_settings() -> None:
    own = OwnQuestions({"door_width": "number", "side": "choice", "color": "text"})
    scores = [("0.9 m", "0.9", "door_width"), ("B", "B", "side"), ("a red", "blue\nRed.", "color"), ("", "", "color")]
    assert [own.score(*answer, "spatial_mllm") for answer in scores] == [0.0, 1.0, 1.0, 0.0]
    assert own.score("0.9", "0.9", "door_width", "spatial_mllm") == 1.0
    again = find_benchmark(own.name)
    assert isinstance(again, OwnQuestions) and again.types == own.types and again.columns == own.columns
    assert own.question_types == ("door_width", "side", "color") and own.groups["mra"] == ("door_width",)
    for types, message in (({}, "no question types"), ({"a b": "number"}, "is no name")):
        with pytest.raises(InputError, match=message):
            OwnQuestions(types)
    with pytest.raises(InputError, match="unknown benchmark 'Own'"):
        find_benchmark("Own")
    assert find_benchmark("VSIBench").name == VSIBench().name == "VSIBench"


def test_a_class_of_ones_own_is_found_by_its_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine_doors.py").write_text(MINE)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "mine_doors", raising=False)
    with pytest.raises(InputError, match="unknown benchmark"):
        find_benchmark("mine_doors.Doors", trusted=False)
    assert "mine_doors" not in sys.modules
    assert find_benchmark("mine_doors.Doors").name == "mine_doors.Doors"
    with pytest.raises(InputError, match=r"mine_doors\.Gone can't be imported"):
        find_benchmark("mine_doors.Gone")
    with pytest.raises(InputError, match="unknown benchmark"):
        find_benchmark("json.JSONDecoder")


def test_conversations_are_for_a_test_or_for_a_training(tmp_path: Path, rooms_root: Path) -> None:
    path = talk(tmp_path, sorted(rooms_root.glob("*/rooms/test_*.mp4")))
    own = OwnQuestions({"door_width": "number", "color": "text"})
    source = Conversations(str(path), evaluation=True, benchmark=own)
    questions = [question for scene in source.scenes("test") for question in scene.questions]
    assert [question.question_type for question in questions[:3]] == ["door_width", "color", "door_width"]
    with pytest.raises(ValueError, match="evaluation is for a test"):
        source.scenes("train")
    with pytest.raises(ValueError, match="score them with `evaluation: true`"):
        Conversations(str(path)).scenes("test")


def test_a_test_on_conversations(
    run: Run,  # noqa: F811
    tmp_path: Path,
    rooms_root: Path,
    capsys: pytest.CaptureFixture,
) -> None:
    path = talk(tmp_path, sorted(rooms_root.glob("*/rooms/test_*.mp4")))
    words = ["--data.source", "Conversations", "--data.source.path", str(path), "--data.source.evaluation", "true"]
    words += ["--data.source.benchmark", "OwnQuestions", "--data.question_types", "null"]
    words += ["--data.source.benchmark.types", "{door_width: number, color: text}"]
    run("test", "--config", "qwen25_vl.yaml", "--model.allow_untrained", "true", *words)
    (folder,) = tmp_path.glob("runs/*")
    metrics = json.loads((folder / "metrics.json").read_text())
    assert metrics["benchmark"] == "OwnQuestions(door_width=number, color=text)"
    assert {kind: each["count"] for kind, each in metrics["per_question_type"].items()} == {"door_width": 3, "color": 3}
    assert metrics["baselines"]["constant"]["all"]["micro"] == 1  # every answer is the same
    capsys.readouterr()
    report([str(folder)])
    assert "door_width" in capsys.readouterr().out
    score([str(folder), "--benchmark", metrics["benchmark"]])
    assert "color" in capsys.readouterr().out
