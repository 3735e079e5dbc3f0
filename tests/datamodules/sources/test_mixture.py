"""Mixtures hold the proportions that were asked for, and lose no scene."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest
from jsonargparse import ArgumentParser

from datamodules.scenes import Question, Scene
from datamodules.sources import Conversations, Mixture, SceneSource
from datamodules.sources.base import QuestionFilter, Split
from datamodules.sources.mixture import Part, repeat_questions
from tests.datamodules.sources.listing import totals
from zoo.errors import InputError


class Made(SceneSource):
    """So many scenes with so many questions each."""

    def __init__(self, name: str, scenes: int, questions: int = 4) -> None:
        super().__init__()
        self.name, self.counts = name, (scenes, questions)
        self.prepared = 0

    def prepare(self) -> None:
        self.prepared += 1

    def scenes(self, split: Split) -> list[Scene]:
        self.missing = {f"{self.name}/gone": Counter({"object_counting": 3})}
        scenes, questions = self.counts
        return [
            Scene(
                f"{self.name}/{i}",
                Path("video.mp4"),
                tuple(Question(f"{self.name}-{i}-{q}", "object_counting", "?", "1") for q in range(questions)),
            )
            for i in range(scenes)
        ]


def parts_of(scenes: list[Scene]) -> Counter:
    """Number of training questions of each part."""
    counts: Counter = Counter()
    for scene in scenes:
        counts[scene.name.split("/")[0]] += len(scene.questions)
    return counts


def times_asked(scenes: list[Scene]) -> Counter:
    return Counter(question.id for scene in scenes for question in scene.questions)


def test_without_weights_each_scene_comes_once():
    a, b = Made("a", 5), Made("b", 3)
    mixture = Mixture([Part(source=a), Part(source=b)])
    mixture.prepare()
    assert mixture.scenes("train") == a.scenes("train") + b.scenes("train")
    assert totals(mixture) == {"a/gone": 3, "b/gone": 3} and a.prepared == b.prepared == 1


@pytest.mark.parametrize("weights", [(0.5, 0.5), (3.0, 1.0), (0.1, 0.9)])
def test_weights_are_shares_of_questions_and_none_is_lost(weights):
    sources = Made("a", 40, questions=2), Made("b", 10, questions=5)
    mixture = Mixture([Part(source=source, weight=w) for source, w in zip(sources, weights, strict=True)])
    scenes = mixture.scenes("train")
    counts = parts_of(scenes)
    assert counts["a"] / counts.total() == pytest.approx(weights[0] / sum(weights), abs=0.01)
    assert times_asked(scenes).keys() == times_asked([s for source in sources for s in source.scenes("train")]).keys()
    assert mixture.scenes("train") == scenes  # the same every time
    assert counts != Counter(a=80, b=50)  # negative control: without weights


def test_questions_are_repeated_evenly():
    scenes = Made("a", 2, questions=5).scenes("train")
    times = times_asked(repeat_questions(scenes, 23, seed=0))
    assert len(times) == 10 and sorted(times.values()) == [2] * 7 + [3] * 3
    assert times != times_asked(repeat_questions(scenes, 23, seed=1))
    assert repeat_questions(scenes, 10, seed=0) == scenes


def test_weights_are_those_of_what_the_filters_leave():
    sources = Made("a", 40), Made("b", 40)
    mixture = Mixture([Part(source=source, weight=0.5) for source in sources])
    few = QuestionFilter(scene_names=["a/0", "a/1", *(f"b/{i}" for i in range(8))])
    scenes, left_out, names = mixture.filtered_split("train", few)
    assert parts_of(scenes) == Counter(a=32, b=32) and left_out == 0 and len(names) == 80
    assert parts_of(few(mixture.scenes("train"))[0]) == Counter(a=8, b=32)  # control: drawn before they are filtered
    subset = mixture.filtered_split("train", QuestionFilter(subset=100)).scenes
    assert parts_of(subset).total() == 100 and 30 < parts_of(subset)["b"] < 70
    with pytest.raises(ValueError, match="part 1 has no scene.*, with datasets=.*'b'"):
        mixture.filtered_split("train", QuestionFilter(datasets=["b"]))
    assert totals(mixture) == {"a/gone": 3, "b/gone": 3}


def test_evaluation_is_another_source():
    mixture = Mixture([Part(source=Made("a", 5))], evaluation=Made("e", 2))
    assert parts_of(mixture.scenes("val")) == Counter(e=8) and totals(mixture) == {"e/gone": 3}
    with pytest.raises(ValueError, match="no test split: set its source as `evaluation`"):
        Mixture([Part(source=Made("a", 5))]).scenes("test")


def test_all_absent_files_are_named_at_once(tmp_path):
    (tmp_path / "b.jsonl").touch()
    parts = [Part(path=str(tmp_path / f"{name}.jsonl%50")) for name in "abc"]
    with pytest.raises(FileNotFoundError, match=r"a\.jsonl is absent: .*; .*c\.jsonl is absent: ") as error:
        Mixture(parts).prepare_splits(["train"])
    assert "b.jsonl" not in str(error.value) and "\n" not in str(error.value)


def test_from_a_config(tmp_path):
    row = {"video": "s/a.mp4", "conversations": [{"from": "human", "value": "?"}, {"from": "gpt", "value": "!"}]}
    for name in ("a", "b"):
        (tmp_path / f"{name}.jsonl").write_text((json.dumps(row) + "\n") * 4)
    (tmp_path / "s").mkdir()
    (tmp_path / "s/a.mp4").touch()
    parser = ArgumentParser()
    parser.add_argument("--source", type=SceneSource)
    again = {"class_path": "datamodules.sources.Conversations", "init_args": {"path": f"{tmp_path}/a.jsonl"}}
    parts = [
        {"path": f"{tmp_path}/a.jsonl", "weight": 0.5},
        {"path": f"{tmp_path}/b.jsonl%50", "weight": 0.25},
        {"source": again, "weight": 0.25},
    ]
    config = {"class_path": "datamodules.sources.Mixture", "init_args": {"parts": parts}}
    source = parser.instantiate(parser.parse_object({"source": config})).source
    assert isinstance(source, Mixture) and source.weights == [0.5, 0.25, 0.25]
    assert all(isinstance(each, Conversations) for each in source.sources)
    scenes = source.scenes("train")
    assert [len(scene.questions) for scene in scenes] == [4, 4, 2, 2, 4]  # a twice, half of b twice, a once


@pytest.mark.parametrize(
    "parts, reason",
    [
        ([], "no parts"),
        ([Part()], "either a path"),
        ([Part(path="a.jsonl", source=Made("a", 1))], "either a path"),
        ([Part(videos="v", source=Made("a", 1))], "either a path"),
        ([Part(path="a.jsonl", weight=0.0)], "a weight must be above 0"),
        ([Part(path="a.jsonl", weight=1.0), Part(path="b.jsonl")], "1 of 2 parts have a weight"),
        ([Part(path="a.jsonl%0")], "after % give"),
    ],
)
def test_parts_that_make_no_sense(parts, reason):
    with pytest.raises(InputError, match=reason):
        Mixture(parts)
    mixture = Mixture([Part(source=Made("a", 0), weight=1.0), Part(source=Made("b", 2), weight=1.0)])
    with pytest.raises(ValueError, match="part 1 has no scene with a video"):
        mixture.scenes("train")
