"""Responses: their statistics, answerers that use or ignore a thing, models that can't respond, the command."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from commands.responses.measuring import ANSWERS, ask_all, check_questions, name_of, pool, responses_of, unresponsive
from commands.responses.results import RESPONSES, Response, estimate, read_responses, response_table, sums_of
from commands.runs import LoadedRun
from datamodules import (
    Intervention,
    MovedPanel,
    OtherWorlds,
    PanelRooms,
    PanelTurn,
    Rooms,
    ScaledLengths,
    TurnedCameras,
    TurnedEmptyViews,
    TurnedPanelView,
    VideoQADataModule,
)
from datamodules.interventions import Origin
from datamodules.sources.base import Split
from tests.cli import Run, Trained
from tests.tiny import tiny_model
from zoo import GTA, CaPE, ChannelRange, SpatialVLM
from zoo.benchmarks import OwnQuestions
from zoo.errors import InputError
from zoo.generation import Reply
from zoo.sequences.layout import ExtraTokens

# ---- Statistics ------------------------------------------------------------------------------------------------------


def made(slope: float, scenes: int, seed: int, *, noise: float = 3.0, offset: float = 0.0) -> Response:
    """Answers that follow the truth with a slope of their own in each scene, and with noise and an offset."""
    rng, sums = np.random.default_rng(seed), {}
    for scene in range(scenes):
        own = slope + 0.3 * rng.standard_normal()
        truths = rng.uniform(80, 280) + np.linspace(-20, 20, 7)
        answers = offset + truths.mean() + own * (truths - truths.mean()) + noise * rng.standard_normal(7)
        rows = zip(truths.tolist(), answers.tolist(), strict=True)
        variants = [{"value": x, "truth": x, "answer": y, "greedy": round(y), "covered": 0.9} for x, y in rows]
        sums[f"room {scene}"] = sums_of("answer", variants)
    return Response("TurnedCameras", "panel_turn", "answer", False, 1.0, "", 7 * scenes, sums)


def test_a_slope_is_that_of_numpy_and_an_offset_is_an_error() -> None:
    response = made(0.6, 40, 0, offset=25.0)
    found = estimate([response])
    (own,) = [own for scene, own in response.sums.items() if scene == "room 0"]
    assert estimate([replace(response, sums={"room 0": own})]).slope[:2] == (pytest.approx(own.xy / own.xx), None)
    slopes = [each.xy / each.xx for each in response.sums.values()]  # of equal weight, as all rooms have the same steps
    assert found.slope.value == pytest.approx(np.mean(slopes)) == pytest.approx(0.6, abs=0.15)
    half = 2.0227 * np.std(slopes, ddof=1) / math.sqrt(40)  # Student's t with 39 degrees of freedom
    assert (found.slope.low, found.slope.high) == pytest.approx(
        (np.mean(slopes) - half, np.mean(slopes) + half), rel=1e-3
    )
    assert found.greedy.value == pytest.approx(found.slope.value, abs=0.02)
    assert found.error == pytest.approx(25, abs=3) and found.covered == pytest.approx(0.9) and found.counted == 1


def test_a_rule_that_knows_halves_has_a_slope_near_1_and_explains_less() -> None:
    """A place is uniform in -1 to 1; the rule answers by the middle of its half. Its slope over both halves is 0.75."""
    places, found = np.linspace(-1, 1, 2001), {}
    for name, answers in (("halves", np.sign(places) / 2), ("exact", places), ("ignores", 0 * places)):
        rows = zip(places.tolist(), answers.tolist(), strict=True)
        variants = [{"value": x, "truth": x, "answer": y, "greedy": y, "covered": 1.0} for x, y in rows]
        sums = {"room": sums_of("answer", variants)}
        found[name] = estimate([Response("MovedPanel", "q", "answer", False, 1.0, "", 2001, sums)])
    assert found["halves"].slope.value == pytest.approx(0.75, abs=1e-3)
    assert [each.explained for each in found.values()] == pytest.approx([0.75, 1, 0], abs=1e-3)


@pytest.mark.parametrize("trainings", [1, 3])
def test_intervals_hold_the_truth_as_often_as_they_say(trainings: int) -> None:
    """Trainings have slopes of their own as well. The interval of one training is for that training alone."""
    rng, held = np.random.default_rng(0), 0
    for repetition in range(200):
        spread = 0.2 * rng.standard_normal(trainings) * (trainings > 1)
        runs = [made(0.5 + own, 12, 1000 * repetition + n) for n, own in enumerate(spread.tolist())]
        interval = estimate(runs).slope
        assert interval.low is not None and interval.high is not None
        held += interval.low <= 0.5 <= interval.high
    assert 0.9 <= held / 200 <= 0.99


def test_choices_have_the_change_of_their_probabilities() -> None:
    sure, unsure = [0.9, 0.1], [0.5, 0.5]
    variants = [
        {"value": x, "truth": None, "answer": y, "greedy": None, "covered": 1.0} for x, y in ((0, sure), (1, unsure))
    ]
    response = Response("A", "b", "exponent", True, None, "", 2, {"s": sums_of("exponent", variants)})
    found = estimate([response])
    assert found.slope.value is None and found.error is None
    assert found.change.value == pytest.approx(math.sqrt(2 * 0.2**2))  # each is 0.2 from their mean
    (row,) = response_table([("", response)]).to_dict("records")
    assert (row["response"], row["of"], row["RMS change"]) == ("", "options", "0.283")


# ---- Answerers -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def turning(tmp_path_factory: pytest.TempPathFactory) -> VideoQADataModule:
    """Rooms of `PanelTurn`."""
    source = PanelRooms(
        PanelTurn(), scenes=(0, 0, 24), size=28, root=str(tmp_path_factory.mktemp("turning")), workers=1
    )
    data = VideoQADataModule(source, num_frames=16, question_types="default")
    data.prepare_splits(("test",))
    return data


def as_run(folder: Path, model: SpatialVLM, data: VideoQADataModule, scenes: int) -> LoadedRun:
    """Make a run of a model that is not on disk."""
    (folder / "config.yaml").write_text(json.dumps({"model": {"init_args": {"max_new_tokens": 2}}, "data": {}}))
    run = LoadedRun(folder, model, data, data.dataset(data.scenes("test")[:scenes]))
    run.dataset.spec = model.model_spec()
    return run


def to_class(number: float) -> float:
    """The answer of a classifier: the nearest of the task's answers."""
    return float(PanelTurn.classes[np.abs(PanelTurn.classes - number).argmin()])


def test_oracles_that_use_a_thing_get_1_and_others_0(turning: VideoQADataModule) -> None:
    """Exact answers, with a constant error, rounded to the classes, and answers that ignore the cameras."""
    rng, scenes = np.random.default_rng(0), turning.scenes("test")
    loaded = [turning.dataset(scenes)[number] for number in range(len(scenes))]
    answerers: dict[str, Callable[[float], float]] = {
        "exact": lambda truth: truth,
        "constant error": lambda truth: truth + 30,
        "classes": to_class,
        "ignores": lambda truth: float(180 + 4 * rng.standard_normal()),
    }
    for own in (TurnedPanelView(), TurnedCameras(), TurnedEmptyViews()):
        used = own.expected(turning.source.benchmark, "panel_turn")
        found: dict[str, dict[str, Any]] = {name: {} for name in answerers}
        for number, scene in enumerate(scenes):
            origin = Origin(turning.source, "test", scene, lambda scene: pytest.fail("reads no other"), (72.0, 288.0))
            variants = own.variants(origin, loaded[number])
            for name, answer in answerers.items() if variants else ():
                rows = [(each.value, each.truth, answer(each.truth or 0.0)) for each in variants]
                told = [dict(value=x, truth=t, answer=y, greedy=None, covered=1.0) for x, t, y in rows]
                found[name][scene.name] = sums_of("answer", told)
        estimates = {
            name: estimate([Response("", "", "answer", False, used, "", 7 * len(scenes), sums)])
            for name, sums in found.items()
        }
        assert 0.7 < estimates["exact"].counted < 1  # some truths are beyond the answers of the task
        for name in ("exact", "constant error"):
            assert estimates[name].slope.value == pytest.approx(used, abs=1e-6)
        assert (estimates["exact"].error, estimates["constant error"].error) == pytest.approx((0, 30), abs=1e-6)
        for name, expected in {"classes": used, "ignores": 0.0}.items():
            slope = estimates[name].slope
            assert slope.value == pytest.approx(expected, abs=0.15) and slope.high - slope.low < 0.5, (name, own)


class Moving(PanelRooms):
    """Rooms whose panel moves as `moved_panels` says."""

    def moved_panels(self, index: int, split: Split = "test", count: int = 9) -> list[Any]:
        (scene,) = [each for each in self.scenes("test") if each.name.endswith(f"{index:05d}")]
        return [(scene, 100.0 + 20 * number, number != 1) for number in range(count)]


def test_a_moved_panel_counts_if_it_stays_in_its_views(
    turning: VideoQADataModule, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = Moving(PanelTurn(), scenes=(0, 0, 24), size=28, root=str(turning.source.folder.parent), workers=1)  # type: ignore[attr-defined]
    data = VideoQADataModule(source, num_frames=16, question_types="default")
    run = as_run(tmp_path, tiny_model().model, data, 2)
    answers = iter(2 * [200, 280, 320])  # twice the true angles
    always = run.model.backbone.preprocessor.tokenize(["17"], (), ExtraTokens.NONE).input_ids.tolist()

    def score(batch: Any, candidates: Sequence[Sequence[str]], **_: Any) -> list[Reply]:
        chances = {str(next(answers)): 0.5}
        log_probs = tuple(math.log(chances.get(text, 1e-30)) for text in candidates[0])
        return [Reply(always, None, (), log_probs)]

    monkeypatch.setattr(run.model, "score_candidates", score)
    moved = MovedPanel(4)
    (response,) = pool(run, moved, ask_all(run, [moved], "test", None)["MovedPanel (variants 4)"])
    found = estimate([response])
    assert found.slope == pytest.approx((2, 2, 2)) and found.greedy == pytest.approx((0, 0, 0))
    assert (found.counted, found.scenes, found.covered) == (0.75, 2, pytest.approx(0.5))
    assert found.error == pytest.approx((100 + 140 + 160) / 3)


# ---- Models ----------------------------------------------------------------------------------------------------------


def lengths_of(folder: Path, rooms_root: Path, model: SpatialVLM, *interventions: Intervention) -> list[Response]:
    kinds = ["room_size_estimation", "object_counting", "object_rel_distance"]
    data = VideoQADataModule(Rooms(scenes=(6, 2, 3), root=str(rooms_root)), num_frames=4, question_types=kinds)
    run = as_run(folder, model, data, 1)
    records = ask_all(run, interventions, "test", None)
    return [each for own in interventions for each in pool(run, own, records[name_of(own)])]


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("prope.yaml", ""),
        ("plain", "reads no cameras"),
        ("AddFusion", "reads 3D tokens of the frames alone"),
        ("PRoPE by VGGT's cameras", "predicts its cameras"),
        ("CaPE, rms", "reads no unit of lengths"),
        ("GTA, rotation", "reads no unit of lengths"),
    ],
)
def test_models_that_cant_respond_to_lengths_do_not(name: str, reason: str, tmp_path: Path, rooms_root: Path) -> None:
    own = {
        "CaPE, rms": CaPE(ChannelRange(), scale="rms"),
        "GTA, rotation": GTA(ChannelRange(), pose_component="rotation"),
    }
    model = tiny_model("plain", camera_encoding=own[name]).model if name in own else tiny_model(name).model
    assert unresponsive(model, ScaledLengths(), False) == reason
    assert unresponsive(model, ScaledLengths(), True) == ""  # poses as text
    assert unresponsive(model, MovedPanel(), False) == ""
    found = lengths_of(tmp_path, rooms_root, model, ScaledLengths(variants=2), OtherWorlds(1))
    changes = {(each.intervention, each.question_type): estimate([each]).change.value for each in found}
    kinds = {each.question_type: each for each in found if each.measure == "exponent"}
    assert {"room_size_estimation", "object_counting", "object_rel_distance"} <= kinds.keys()
    assert kinds["room_size_estimation"].expected == 2 and kinds["object_rel_distance"].is_choice
    for (intervention, kind), change in changes.items():
        assert change is not None
        if reason or intervention.startswith("OtherWorlds"):  # all encodings here have a reference view
            assert change < 2e-3, (intervention, kind)
        else:
            assert change > 1e-4, (intervention, kind)


# ---- The command -----------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_command(run: Run, trained: Trained, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    folder = trained()
    few = ["--scenes", "2", "--interventions+", "ScaledLengths", "--interventions.variants", "2"]
    printed = run("measure-responses", str(folder), *few)
    assert "reads no cameras" in printed and "room_size_estimation" in printed
    written = json.loads((folder / RESPONSES).read_text())
    assert (written["split"], written["scenes"]) == ("test", 2)
    responses = read_responses(folder)
    assert {each.intervention for each in responses} == {"ScaledLengths (variants 2)"}
    assert {each["question_type"]: each["estimate"]["change"]["value"] for each in written["responses"]}.keys() == {
        each.question_type for each in responses
    }
    assert all(0 < estimate([each]).covered <= 1 and len(each.sums) <= 2 for each in responses)
    # 1. It goes on: with one more scene, the others are not asked again. The result is that of Python.
    lines = (folder / ANSWERS).read_text().splitlines()
    (folder / ANSWERS).write_text("\n".join([lines[0], lines[1][:50]]))
    calls: list[int] = []
    score = SpatialVLM.score_candidates
    counted = lambda *each, **more: (calls.append(1), score(*each, **more))[1]  # noqa: E731
    monkeypatch.setattr(SpatialVLM, "score_candidates", counted)
    run("measure-responses", str(folder), *few)
    assert len(calls) == 2 and json.loads((folder / RESPONSES).read_text()) == written
    again = responses_of(folder, [ScaledLengths(variants=2)], num_scenes=2, folder=folder)
    assert [each.sums.keys() for each in again] == [each.sums.keys() for each in responses] and len(calls) == 2
    own = "num_frames: 4, question_types: null, keep_in_memory: false"  # the last one changes no answer
    Path("memory.yaml").write_text(f"data: {{init_args: {{{own}}}}}")
    asked = {"num_scenes": 2, "folder": folder, "data": "memory.yaml"}
    responses_of(folder, [ScaledLengths(variants=2)], **asked)  # type: ignore[arg-type]
    assert len(calls) == 2
    # 2. A report of the run has them, once it is tested.
    run("test")
    assert "ScaledLengths (variants 2)" in run("report", str(folder))
    # 3. Bad input: one line each.
    for words, error in (
        (["--scenes", "0"], "--scenes 0: at least 1"),
        (["--interventions", "[MovedPanel]"], "MovedPanel: only the rooms of PanelRooms"),
        (["--interventions", "[Moved]"], "did you mean MovedPanel"),
    ):
        with pytest.raises(SystemExit, match=error) as end:
            run("measure-responses", str(folder), *words)
        assert "\n" not in str(end.value.code)
    # 4. Other data than the run's.
    Path("other.yaml").write_text("data: {init_args: {question_types: [object_counting]}}")
    few += ["--data", "other.yaml", "--output", "apart"]
    assert "room_size_estimation" not in run("measure-responses", str(folder), *few)
    assert {each.question_type for each in read_responses(Path("apart"))} == {"object_counting"}
    few = few[:-4]
    # 5. A link in someone else's folder is not followed.
    other = tmp_path / "other.txt"
    other.write_text("mine\n")
    (folder / ANSWERS).unlink()
    (folder / ANSWERS).symlink_to(other)
    with pytest.raises(SystemExit, match="responses.jsonl is a link"):
        run("measure-responses", str(folder), *few)
    assert other.read_text() == "mine\n"
    (folder / RESPONSES).write_text("{}")
    with pytest.raises(InputError, match=r"responses\.json can't be read"):
        read_responses(folder)


def test_questions_without_a_declared_response(rooms_root: Path, tmp_path: Path) -> None:
    source = Rooms(scenes=(6, 2, 3), root=str(rooms_root))
    run = as_run(tmp_path, tiny_model().model, VideoQADataModule(source, num_frames=4), 1)
    run.data.source.benchmark = OwnQuestions({"room_size_estimation": "number", "object_counting": "text"})
    with pytest.raises(InputError, match="no declared response for its questions .*room_size_estimation.*OwnQuestions"):
        check_questions(run)
