"""Blind baselines: the best constant, answers by the text, and the cameras alone.

The cameras tell the size of a room that a path goes around; exchanged between rooms, they tell nothing.
"""

from __future__ import annotations

import json
import random
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from datamodules.cameras_file import write_cameras
from datamodules.scenes import Question, Scene
from datamodules.sources.base import SceneSource, Split
from datamodules.sources.rooms import layout
from evaluation.baselines import (
    LEAST_ANSWERS,
    LEAST_ROWS,
    Asked,
    BlindBaselines,
    TextAnswers,
    best_constant,
    blind_baselines,
    camera_answers,
    constant_baseline,
    describe_path,
    has_boosting,
    is_above,
    is_below,
    least_squares,
    nearest_neighbors,
)
from tests.poses import random_poses
from zoo.benchmarks import SQA3D, VSIBench, VSTIBench
from zoo.cameras import invert_se3

NUMERIC, CHOICE = "room_size_estimation", "route_planning"


def mean_score(constant: str, truths: list[str], kind: str, scorer: str) -> float:
    return float(np.mean([VSIBench().score(constant, truth, kind, scorer) for truth in truths]))


def draws(rng: random.Random) -> list[str]:
    """Right answers: counts, of which many are equal and thresholds meet, or areas; some 0 or below."""
    if rng.random() < 0.5:
        return [str(rng.choice((1, 1, 2, 2, 3, 4, 6, 9, *([0] if rng.random() < 0.2 else [])))) for _ in range(12)]
    sign = -1 if rng.random() < 0.1 else 1
    return [f"{sign * rng.lognormvariate(2, 0.7):.1f}" for _ in range(rng.randint(1, 25))]


@pytest.mark.parametrize(
    "scorer",
    ["spatial_mllm", "thinking_in_space", "geovr"],
)
def test_no_constant_of_a_fine_grid_scores_above_the_best_one(scorer: str) -> None:
    rng = random.Random(0)
    for _ in range(5):
        truths = draws(rng)
        best = mean_score(best_constant(truths, NUMERIC, VSIBench(), scorer), truths, NUMERIC, scorer)
        numbers = [float(truth) for truth in truths]
        grid = [*truths, *(f"{c:.5g}" for c in np.linspace(1.5 * min(*numbers, 0), 1.5 * max(*numbers, 0), 200))]
        tried = [mean_score(constant, truths, NUMERIC, scorer) for constant in grid]
        assert best >= max(tried) - 1e-6
        assert best <= max(tried) + 1 / len(truths)  # a score that is real: the grid comes close


def test_of_letters_it_is_the_most_frequent_and_of_free_answers_one_of_the_accepted() -> None:
    assert best_constant(list("ABBCB"), CHOICE, VSIBench(), "geovr") == "B"
    assert best_constant(["two\n2", "2\n3", "4"], "how", SQA3D(), "exact_match") in ("2", "two")
    assert best_constant(["inf", "nan"], NUMERIC, VSIBench(), "geovr") == ""  # no number: nothing to answer


def real_questions(file: Path) -> list[dict[str, Any]]:
    rows = map(json.loads, file.read_text().splitlines())
    return [{**row, "id": str(row["id"]), "ground_truth": str(row["ground_truth"])} for row in rows]


def test_constants_answer_more_of_vsibench_than_a_published_baseline(realdata: Path) -> None:
    """docs/results.md: Qwen2.5-VL-3B has 27.3."""
    rows = real_questions(realdata / "vsibench/test.jsonl")
    found = constant_baseline(rows, VSIBench(), "thinking_in_space").scores["constant"]
    assert len(rows) == 5130 and found["all"]["macro"] == pytest.approx(0.343, abs=5e-4)


def test_the_150_real_rooms_have_a_constant_above_the_published_baseline(realdata: Path) -> None:
    """The size of the best constant answer to ARKitScenes' questions, and its score; Qwen2.5-VL has 0.291."""
    rows = real_questions(realdata / "vsibench/arkitscenes_room_size.jsonl")
    found = constant_baseline(rows, VSIBench(), "spatial_mllm").scores["constant"]
    assert len(rows) == 150 and found["all"]["micro"] == found["mra"]["macro"] == pytest.approx(0.375, abs=2e-3)
    assert float(found["answers"][NUMERIC]) == pytest.approx(21.9, abs=0.1)
    truths = [row["ground_truth"] for row in rows]
    assert mean_score("21.9", truths, NUMERIC, "spatial_mllm") == pytest.approx(0.375, abs=5e-4)


# ---- by the text

FAR, SIDE = "object_abs_distance", "object_rel_direction_easy"
LENGTH, SIZES = "object_size_estimation", {"chair": "90", "sofa": "210", "lamp": "40"}


def asked(kind: str, text: str, truth: str = "", options: tuple[str, ...] = ()) -> Question:
    return Question(f"{kind} {text} {truth}", kind, text, truth, options)


def apart(a: str, b: str, truth: str = "") -> Question:
    return asked(FAR, f"What is the distance between the {a} and the {b} (in meters)?", truth)


def answers(questions: list[Question]) -> TextAnswers:
    return TextAnswers(questions, VSIBench(), "spatial_mllm")


def test_a_question_is_answered_as_the_same_one_was_in_training() -> None:
    text = answers(
        [asked(LENGTH, f"How long is the {name}?", size) for name, size in SIZES.items() for _ in range(LEAST_ANSWERS)]
    )
    assert {name: text(asked(LENGTH, f"How long is the {name}?")) for name in SIZES} == SIZES
    rare = answers(
        [asked(LENGTH, "How long is the chair?", "90")] * LEAST_ANSWERS + [asked(LENGTH, "How long is the bed?", "200")]
    )
    assert rare(asked(LENGTH, "How long is the bed?")) == "90"  # too few answers: that of the type
    assert text(apart("chair", "sofa")) is None  # a type that the training lacks


def test_a_new_pair_is_answered_by_its_objects() -> None:
    near = [apart("chair", name, "1") for name in ("desk", "rug", "door", "oven", "vase", "fan")]
    far = [apart("stove", name, "4") for name in ("bed", "tub", "bin", "tv", "box", "pot")]
    text = answers([*near, *far])
    assert text(apart("chair", "clock")) == "1" and text(apart("clock", "stove")) == "4"
    assert float(text(apart("chair", "stove")) or 0) == pytest.approx(2)  # the geometric mean
    assert text(apart("clock", "shelf")) in ("1", "4")  # unknown objects: the constant of the type


def test_a_choice_is_that_which_was_right_most_often_where_it_was_offered() -> None:
    options = ("A. left", "B. right"), ("A. right", "B. left")
    seen = [asked(SIDE, "Left or right?", "AB"[n % 2], options[n % 2]) for n in range(8)]  # always left
    text = answers([*seen, asked(SIDE, "Left or right?", "B", options[0])])
    assert [text(asked(SIDE, "Which side?", "", own)) for own in options] == ["A", "B"]
    letters = answers([asked(SIDE, "Raw: left or right?", letter) for letter in "BBA"])
    assert letters(asked(SIDE, "Which side?", "", options[0])) == letters(asked(SIDE, "Which side?")) == "B"


# ---- by the cameras

SIZE, SCORER = "room_size_estimation", "spatial_mllm"
TRAINED, TESTED, FRAMES = 150, 75, 48


@cache
def rooms(trajectory: str) -> list[tuple[np.ndarray, str]]:
    """Camera paths of rooms with their areas; nothing is furnished or rendered."""
    drawn = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(layout, "_furnish", lambda *_: [])
        for index in range(TRAINED + TESTED):
            rng = np.random.default_rng([0, index])
            scene, world_to_camera = layout.draw_scene(trajectory, False, FRAMES, rng)  # type: ignore[arg-type]
            drawn.append((world_to_camera, f"{scene.area:.1f}"))
    return drawn


def score(answers: dict[str, str], truths: dict[str, str], kind: str = SIZE) -> float:
    return float(np.mean([VSIBench().score(answers[id], truth, kind, SCORER) for id, truth in truths.items()]))


def scores_of(trajectory: str, *, shuffled: bool = False) -> dict[str, float]:
    """The score of each regression, and of the best constant."""
    drawn = rooms(trajectory)
    order = np.random.default_rng(0).permutation(TRAINED) if shuffled else np.arange(TRAINED)
    asked = [
        Asked(Question(str(i), SIZE, "How large?", area), described(drawn[order[i] if i < TRAINED else i][0]))
        for i, (_, area) in enumerate(drawn)
    ]
    truths = {each.question.id: each.question.ground_truth for each in asked[TRAINED:]}
    found = camera_answers(asked[:TRAINED], asked[TRAINED:], SIZE, VSIBench())
    constant = best_constant(list(truths.values()), SIZE, VSIBench(), SCORER)
    return {name: score(own, truths) for name, own in found.items()} | {
        "constant": score(dict.fromkeys(truths, constant), truths)
    }


def described(poses: np.ndarray, focal: float = 1.0) -> np.ndarray:
    found = describe_path(poses, np.diag([focal, focal, 1.0])[None].repeat(len(poses), 0))
    assert found is not None
    return found


def test_the_path_around_a_room_tells_its_size() -> None:
    around, spot = scores_of("loop"), scores_of("local")
    assert around["least squares"] > 0.75 > around["constant"] + 0.3
    assert spot["least squares"] < spot["constant"] + 0.03  # the control: a circle of any size in a room of any size
    if has_boosting():
        assert around["gradient boosting"] > around["constant"] + 0.2
        assert spot["gradient boosting"] < spot["constant"] + 0.05
    exchanged = scores_of("loop", shuffled=True)
    assert all(each < exchanged["constant"] + 0.04 for each in exchanged.values())


def test_a_path_is_described_alike_in_any_world_frame() -> None:
    poses = torch.from_numpy(rooms("loop")[0][0])
    moved = (poses @ invert_se3(random_poses(1, seed=3).double())).numpy()
    assert np.allclose(described(moved), described(poses.numpy()), atol=1e-6)
    absent = poses.numpy().copy()
    absent[[0, 5]] = np.nan
    assert np.array_equal(described(absent), described(np.delete(absent, [0, 5], 0)))
    assert np.isfinite(described(poses[:1].numpy())).all()
    assert describe_path(absent[[0, 5]], np.eye(3)[None].repeat(2, 0)) is None


def test_the_intrinsics_are_described_as_well() -> None:
    """A quantity that only the focal length tells is answered, and not where focal lengths are exchanged."""
    poses, rng = rooms("loop")[0][0], np.random.default_rng(0)
    focal = np.exp(rng.uniform(-1, 1, TRAINED + TESTED))
    truths = {str(i): f"{10 * each:.1f}" for i, each in enumerate(focal)}
    for shown, is_answered in ((focal, True), (rng.permutation(focal), False)):
        asked = [
            Asked(Question(id, SIZE, "How wide?", truth), described(poses, each))
            for (id, truth), each in zip(truths.items(), shown, strict=True)
        ]
        tested = dict(list(truths.items())[TRAINED:])
        found = camera_answers(asked[:TRAINED], asked[TRAINED:], SIZE, VSIBench())
        assert (score(found["least squares"], tested) > 0.9) is is_answered


def test_least_squares_is_the_ridge_solution_with_the_least_error_of_leaving_one_out() -> None:
    """Beside the normal equations, solved anew without each row."""
    rng = np.random.default_rng(0)
    features = rng.normal(size=(30, 4)) * [1, 10, 0.1, 1] + 5
    targets = features @ [[1.0, 0], [0.1, 0], [0, 2], [0, 0]] + rng.normal(size=(30, 2))
    predicted = least_squares(features, targets)(features)
    mean, spread = features.mean(0), features.std(0)
    table = (features - mean) / spread

    def fit(rows: np.ndarray, own: np.ndarray, penalty: float) -> Any:
        ones = np.column_stack([rows, np.ones(len(rows))])
        weights = np.linalg.solve(ones.T @ ones + np.diag([penalty] * 4 + [0]), ones.T @ own)
        return lambda new: np.column_stack([new, np.ones(len(new))]) @ weights

    def error(penalty: float) -> float:
        left = [np.delete(np.arange(30), i) for i in range(30)]
        return sum(
            ((fit(table[k], targets[k], penalty)(table[[i]]) - targets[i]) ** 2).sum() for i, k in enumerate(left)
        )

    best = min((10.0**power for power in range(-2, 7)), key=error)
    assert np.allclose(predicted, fit(table, targets, best)(table), atol=1e-8)


def test_neighbors_answer_by_their_median_number_or_their_most_frequent_class() -> None:
    features = np.array([[0.0, 0.0], [1.0, 0.0], [2.0, 0.0], [50.0, 9.0]])
    numbers, classes = np.array([[1.0], [2.0], [9.0], [100.0]]), np.eye(2)[[0, 1, 1, 0]]
    asked = np.array([[1.1, 0.0], [40.0, 9.0]])
    assert nearest_neighbors(features, numbers, 3)(asked).ravel().tolist() == [2.0, 9.0]
    assert nearest_neighbors(features, classes, 3)(asked)[0].tolist() == pytest.approx([1 / 3, 2 / 3])
    assert nearest_neighbors(features, numbers, 1)(asked).ravel().tolist() == [2.0, 100.0]


def test_what_is_possible_is_no_baseline_that_a_score_should_exceed() -> None:
    baselines = {"constant": 0.4, "text": None, "oracle: pose without pixel": 0.7, "possible: pose and pixel": 1.0}
    assert is_below(0.6, baselines) and not is_above(0.6, baselines)
    assert not is_below(0.7, baselines) and not is_above(0.7, baselines)  # equal
    assert is_above(0.71, baselines) and not is_below(0.71, baselines)
    assert not is_below(None, baselines)


def test_options_are_told_apart_by_their_text() -> None:
    """Cameras that turn left; the letter of the option changes from question to question."""
    rng, options = np.random.default_rng(0), (("A. left", "B. right"), ("A. right", "B. left"))
    asked = []
    for i in range(4 * LEAST_ROWS):
        offered, path = options[rng.integers(2)], rng.normal(size=6)
        truth = next(each[0] for each in offered if each.endswith("left" if path[2] > 0 else "right"))
        asked.append(Asked(Question(str(i), SIDE, "Which way?", truth, offered), path))
    truths = {each.question.id: each.question.ground_truth for each in asked[3 * LEAST_ROWS :]}
    for own in camera_answers(asked[: 3 * LEAST_ROWS], asked[3 * LEAST_ROWS :], SIDE, VSIBench()).values():
        assert score(own, truths, SIDE) > 0.7  # half by chance
    assert camera_answers(asked[: LEAST_ROWS - 1], asked[60:], SIDE, VSIBench()) == {}


class Drawn(SceneSource):
    """The rooms as files of cameras alone."""

    def __init__(self, root: Path, trained: int = 60, tested: int = 20) -> None:
        super().__init__()
        self.counts: dict[str, range] = {"train": range(trained), "test": range(trained, trained + tested)}
        self.root, self.options = root, {"width": 56, "height": 56}
        for i in range(trained + tested):
            write_cameras(root / f"{i}.json", torch.from_numpy(rooms("loop")[i][0]), torch.eye(3), **self.options)

    def scenes(self, split: Split) -> list[Scene]:
        if split not in self.counts:
            raise ValueError(f"no {split} split")
        found = []
        for i in self.counts[split]:
            asked = (
                Question(f"{i}", SIZE, "How large?", rooms("loop")[i][1]),
                Question(f"{i}-n", "object_counting", "How many?", "2"),
            )
            found.append(Scene(f"rooms/{i}", self.root / f"{i}.mp4", asked, self.root / f"{i}.json"))
        return found


def baselines(source: Drawn) -> BlindBaselines:
    scenes = source.scenes("test")
    rows = [vars(question) for scene in scenes for question in scene.questions]
    return blind_baselines(rows, scenes, source, SCORER)


def test_all_baselines_of_a_test_with_the_same_names_of_scores(tmp_path: Path) -> None:
    source = Drawn(tmp_path)
    found = baselines(source).scores
    assert list(found) == ["constant", "text", "cameras"]
    constant, text, cameras = found.values()
    assert constant.pop("answers")["object_counting"] == "2"
    assert constant.keys() == text.keys() == cameras.keys() == {"per_question_type", "acc", "mra", "all"}
    of_size = [each["per_question_type"][SIZE]["score"] for each in (constant, text, cameras)]
    assert of_size[1] <= of_size[0] < of_size[2] - 0.2  # the constant of the training is not that of the test
    # all training answers are 2: cameras have nothing to tell, and no mean over types that they lack
    assert cameras["per_question_type"].keys() == {SIZE}
    assert cameras["mra"] == cameras["all"] == {"micro": None, "macro": None} == cameras["acc"]
    assert text["all"]["macro"] == pytest.approx((of_size[1] + 1) / 2)


def test_what_is_absent_is_said_and_costs_a_test_nothing(tmp_path: Path) -> None:
    source = Drawn(tmp_path)
    (tmp_path / "3.json").write_text("{")  # a damaged training scene is one without cameras
    assert "cameras" in baselines(source).scores
    (tmp_path / "70.json").write_text("{")  # and of a damaged test scene there is no answer: its type has no score
    assert "cameras" not in baselines(source).scores
    source.counts["train"] = range(LEAST_ROWS - 1)
    assert "20 training questions and a test question whose scenes have cameras" in baselines(source).remarks[0]
    del source.counts["train"]
    found = baselines(source)
    assert list(found.scores) == ["constant"] and "text and cameras: ValueError: no train split" in found.remarks[0]
    source.counts["train"] = range(0)
    assert "no training question" in baselines(source).remarks[0]
    assert constant_baseline([], VSIBench(), SCORER).scores == {}


class Moved(SceneSource):
    """A camera that moves two meters to the right, with the released label of the displacement or a wrong one."""

    benchmark = VSTIBench()

    def __init__(self, root: Path, truth: str) -> None:
        super().__init__()
        camera_to_world = torch.eye(4, dtype=torch.float64).repeat(3, 1, 1)
        camera_to_world[:, 0, 3] = torch.tensor([0.0, 1.0, 2.0])
        write_cameras(root / "moved.json", invert_se3(camera_to_world), torch.eye(3), width=56, height=56)
        words = "between frame 1 and frame 3 of 3?"
        asked = (
            Question("how far", "camera_displacement", f"How far {words}", truth),
            Question("where", "camera_movement_direction", f"Where {words}", "B", ("A. Left", "B. Right")),
            Question("door", "camera_obj_abs_dist", "How far is the door in frame 1 of 3?", "1.5"),
        )
        self.scene = Scene("moved", root / "moved.mp4", asked, root / "moved.json")

    def scenes(self, split: Split) -> list[Scene]:
        if split == "train":
            raise ValueError("no train split")
        return [self.scene]


@pytest.mark.parametrize(("truth", "score"), [("2.0", 1.0), ("9.0", 0.0)])
def test_the_motion_of_the_camera_needs_no_training(tmp_path: Path, truth: str, score: float) -> None:
    source = Moved(tmp_path, truth)
    rows = [vars(question) for question in source.scene.questions]
    found = blind_baselines(rows, [source.scene], source, "vlm_3r")
    cameras = found.scores["cameras"]["per_question_type"]
    assert {kind: own["score"] for kind, own in cameras.items()} == {
        "camera_displacement": score, "camera_movement_direction": 1.0,
    }  # fmt: skip
    assert found.scores["cameras"]["all"]["macro"] is None  # cameras don't tell where the door is
    (remark,) = found.remarks
    assert remark.startswith("no blind baselines of text: ValueError: no train split")
    (tmp_path / "moved.json").unlink()
    assert "cameras" not in blind_baselines(rows, [source.scene], source, "vlm_3r").scores
