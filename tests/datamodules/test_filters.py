"""Filters by dataset, question type and scene, and a reproducible subset."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from datamodules import SceneSource, VideoQADataModule
from datamodules.scenes import Question, Scene
from datamodules.sources.base import QuestionFilter, Split
from zoo.errors import InputError

KINDS = ("object_counting", "room_size_estimation")


def scenes() -> list[Scene]:
    """Six scenes of two datasets, each with two counts and a room's size."""
    return [
        Scene(
            f"{dataset}/{number}",
            Path("video.mp4"),
            tuple(Question(f"{dataset}{number}{i}", KINDS[i // 2], "?", "4") for i in range(3)),
        )
        for dataset in ("arkitscenes", "scannet")
        for number in range(3)
    ]


def names(kept: list[Scene]) -> list[str]:
    return [scene.name for scene in kept]


def ids(kept: list[Scene]) -> list[str]:
    return [question.id for scene in kept for question in scene.questions]


def test_conditions_add_up() -> None:
    assert QuestionFilter()(scenes()) == (scenes(), 0)
    kept, left_out = QuestionFilter(datasets=["scannet"], question_types=["room_size_estimation"])(scenes())
    assert names(kept) == ["scannet/0", "scannet/1", "scannet/2"]
    assert ids(kept) == ["scannet02", "scannet12", "scannet22"]
    assert left_out == 6  # of scannet's questions; those of the other dataset were never asked for


def test_scenes_by_either_name_or_from_a_file(tmp_path):
    assert names(QuestionFilter(scene_names=["scannet/1"])(scenes())[0]) == ["scannet/1"]
    assert names(QuestionFilter(scene_names=["1"])(scenes())[0]) == ["arkitscenes/1", "scannet/1"]
    (tmp_path / "list.txt").write_text("scannet/2\n\n arkitscenes/0 \nmine/living room\n")
    from_file = QuestionFilter(scene_names=str(tmp_path / "list.txt"))
    assert names(from_file(scenes())[0]) == ["arkitscenes/0", "scannet/2"]
    assert from_file.is_chosen("mine/living room") and not from_file.is_chosen("mine/living")


def test_a_subset_depends_on_the_seed_alone():
    draw = QuestionFilter(question_types=["object_counting"], subset=5)
    kept, left_out = draw(scenes())
    assert len(ids(kept)) == 5 and left_out == 12 - 5 and all(scene.questions for scene in kept)
    assert {question.question_type for scene in kept for question in scene.questions} == {"object_counting"}
    assert set(ids(draw(scenes()[::-1])[0])) == set(ids(kept))
    assert ids(kept) == [i for i in ids(scenes()) if i in ids(kept)]  # the order stays
    others = [QuestionFilter(question_types=["object_counting"], subset=5, seed=seed) for seed in range(1, 4)]
    assert any(ids(other(scenes())[0]) != ids(kept) for other in others)  # negative control
    assert len(ids(QuestionFilter(subset=100)(scenes())[0])) == 18


class Given(SceneSource):
    """Scenes of the test."""

    def __init__(self, *given: Scene) -> None:
        super().__init__()
        self.given = list(given)

    def scenes(self, split: Split) -> list[Scene]:
        return self.given


def test_a_training_prints_what_is_left_out(caplog: pytest.LogCaptureFixture) -> None:
    def printed(**conditions: Any) -> list[str]:
        caplog.clear()
        with caplog.at_level("INFO"):
            VideoQADataModule(Given(*scenes()), **conditions).scenes("train")
        return [record.getMessage() for record in caplog.records]

    assert printed() == []  # negative control
    assert printed(question_types=["room_size_estimation"]) == [
        "train: 12 questions left out by --data.question_types [room_size_estimation]"
    ]
    assert printed(datasets=["scannet"], scene_names=["1"], subset=2) == [
        "train: 5 of 6 scenes left out by --data.datasets and --data.scene_names",
        "train: 1 question left out by --data.subset 2",
    ]


def test_questions_of_a_test_have_ids_of_their_own() -> None:
    data = VideoQADataModule(Given(*scenes(), *scenes()[:1]))
    assert len(data.scenes("train")) == 7  # an answer is known by its id
    with pytest.raises(InputError, match="2 questions of the val split have the id 'arkitscenes00'"):
        data.scenes("val")


def test_conditions_that_make_no_sense():
    with pytest.raises(InputError, match="unknown question_type 'color'; VSIBench has object_abs_distance"):
        VideoQADataModule(question_types=["color"])
    VideoQADataModule(question_types=list(KINDS))
    with pytest.raises(InputError, match="subset 0: at least 1"):
        QuestionFilter(subset=0)
    with pytest.raises(InputError, match="gone.txt is absent"):
        QuestionFilter(scene_names="gone.txt")
