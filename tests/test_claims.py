"""What the studies claim holds in their results, by the bounds that they set before anything was trained."""

from __future__ import annotations

import json
import os
import re
import statistics
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.stats

from commands.studies.document import Cell
from commands.studies.study_file import OWN
from datamodules import PanelFreeTurn, PanelRooms, PanelTurn
from docs import findings, licenses
from docs.scores import QUESTIONS, SCORES, document_of, filled, judged
from zoo.backbones.base import loaders

ROOT = Path(__file__).parents[1]
# measured by a user with the published code
USERS = {"Spatial-MLLM-v1.1-Instruct-135K": "0.5320", "Qwen2.5-VL-3B-Instruct": "0.2907"}


@pytest.fixture(autouse=True)
def in_repository(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


def mean(study: str, setting: str, column: str = "", test: str = OWN) -> float:
    """The mean over all seeds of a setting in a test."""
    scores = document_of(study).scores(Cell(setting, column, test))
    assert len(scores) == len(document_of(study).study.seeds)
    return statistics.mean(scores)


def blind(study: str, column: str = "") -> list[float]:
    """The blind baselines: the best constant, text, cameras."""
    return [document_of(study).baselines[name][column] for name in ("constant", "text", "cameras")]


def study_cases() -> list[Any]:
    """All studies; those with large results are slow."""
    files = sorted(ROOT.glob("studies/*.yaml"))
    large = {file.stem for file in ROOT.glob("studies/results/*.jsonl") if file.stat().st_size > 90_000}
    return [pytest.param(file.stem, marks=pytest.mark.slow if file.stem in large else ()) for file in files]


@pytest.mark.parametrize("study", study_cases())
def test_the_studies_of_the_repository_are_read_and_have_their_tables(study: str) -> None:
    """The committed document holds what the committed results say."""
    document = document_of(study)
    if document.study.document.exists():
        assert document.markdown(f"{study}.png") == document.study.document.read_text()


def test_quoted_scores_are_the_results() -> None:
    for file in {QUESTIONS, *(file for file, *_ in SCORES)}:
        assert filled(file) == Path(file).read_text(encoding="utf-8"), "python -m docs.scores"


def test_what_the_questions_call_shown_or_equal_is_so_in_one_family() -> None:
    """Holm's correction is over all differences of the page. The control: alone, more of them would be shown."""
    lines = Path(QUESTIONS).read_text(encoding="utf-8").splitlines()
    rows = [[cell.strip() for cell in line.split("|")[1:]] for line in lines if line.startswith("| ")]
    found: dict[str, set[str]] = {}
    for claim, _, word in judged():
        found.setdefault(claim.question, set()).add(word)
    assert found.keys() <= {row[0] for row in rows}
    for question, _, sure, *_ in rows[1:]:
        words = {"shown", "equal"} & {*re.findall(r"[a-z]+", sure)}
        assert words <= found.get(question, set()), question
        assert "unknown" not in sure or "unknown" in found.get(question, {"unknown"}), question
    shown = sum(word == "shown" for *_, word in judged())
    assert 5 < shown < sum((own.p or 1) < 0.05 for _, own, _ in judged())


def test_the_three_findings_of_the_questions_hold() -> None:
    """Models that are told cameras follow them and the pixel, and others do not. The figures draw the same numbers."""
    found = findings.responses()
    for setting in ("PRoPE", "GTA"):
        moved, turned, empty = (found[setting][change].value for change in findings.CHANGES)
        assert min(moved, turned) > 0.9 and abs(empty) < 0.05
    for setting in ("pose index", "images alone"):
        assert all(abs(own.value) < 0.1 for own in found[setting].values())
    scores, rules = findings.scores()
    halves = rules["oracle: poses, which half of each view"]
    assert 0.95 < halves < statistics.mean(scores["PRoPE"]) < halves + 0.02
    small, large = findings.costs().values()
    assert -0.05 < small.low < small.high < 0 and large.value < -0.05


def test_a_model_triangulates_after_3200_steps() -> None:
    """It exceeds all that does without parallax by 0.15. The control: images alone do not."""
    study, column, tests = "triangulation_long", "parallax", ("cameras of another room", "frames at other centers")
    images = mean(study, "images alone", column)
    for setting in ("PRoPE", "PRoPE, depth objective"):
        without = [images, *blind(study, column), *(mean(study, setting, column, test) for test in tests)]
        assert mean(study, setting, column) >= max(without) + 0.15
    assert images < max(blind(study, column)) + 0.15


def interval(pairs: np.ndarray, others: np.ndarray | None = None) -> str:
    """The 95 % interval of a mean over seeds and scenes, as in the documents. `others` are other trainings."""
    sides = [pairs] if others is None else [pairs, -others]
    terms = [(side.mean(1).var(ddof=1) / len(side), len(side) - 1) for side in sides]
    over_scenes = sum(side.mean(0) for side in sides)
    terms.append((over_scenes.var(ddof=1) / over_scenes.size, over_scenes.size - 1))
    variance = sum(own for own, _ in terms)
    freedom = variance**2 / sum(own**2 / degrees for own, degrees in terms)
    half = scipy.stats.t.ppf(0.975, freedom) * variance**0.5
    value = sum(side.mean() for side in sides)
    return f"{value - half:+.3f} to {value + half:+.3f}"


@pytest.mark.parametrize(
    ("study", "ours", "others"),
    [
        ("turn", ("PRoPE", ""), ("images alone", "")),
        ("turn", ("PRoPE", "cameras of another room"), ("PRoPE", "")),
        ("encodings", ("PRoPE, unit of mean distance", ""), ("PRoPE", "")),
    ],
)
def test_intervals_are_those_of_numpy(study: str, ours: tuple[str, str], others: tuple[str, str]) -> None:
    """From the answers' scores in the results, without the code of reports and studies. Each room has one question."""
    lines = [json.loads(line) for line in Path(f"studies/results/{study}.jsonl").read_text().splitlines()]
    (rooms,) = [each for each in lines if "ids" in each]
    assert len(set(rooms["scenes"])) == len(rooms["ids"]) == 500
    scores: dict[tuple[str, str], dict[int, list[float]]] = {ours: {}, others: {}}
    for line in lines:
        if "ids" not in line and (side := (line["setting"], line["test"])) in scores:
            scores[side][line["seed"]] = line["question_scores"]
    assert scores[ours].keys() == scores[others].keys()
    first, second = (np.array([scores[side][seed] for seed in scores[ours]]) for side in (ours, others))
    document = Path(f"studies/{study}.md").read_text()
    expected, control = interval(first, second), interval(first - second)
    if ours[0] == others[0]:  # two tests of the same trainings
        expected, control = control, expected
    found = [line for line in document.splitlines() if line.startswith(f"| {ours[0]} ") and expected in line]
    assert len(found) == 1
    assert control not in document


@pytest.mark.skipif("ZOO_GOLDEN" not in os.environ, reason="ZOO_GOLDEN is unset: no published numbers")
def test_a_users_scores_are_as_reported() -> None:
    published = json.loads((Path(os.environ["ZOO_GOLDEN"]) / "published.json").read_text(encoding="utf-8"))
    rows = published["room_size_arkitscenes_150"]["rows"]
    assert {model: f"{rows[model]['micro']:.4f}" for model in USERS} == USERS


def scores_of_rules(task: PanelTurn, frames: int) -> tuple[float, float, float]:
    """Scores of the turn of the view and the pixel, of its quarter and the pixel, and of the turn alone."""
    rooms = PanelRooms(task, frames=frames, seed=2)
    exact, quarter, blind = [], [], []
    for index in range(500):
        rng = rooms.generator("test", index)
        drawn = rooms.draw("test", index, rng)
        (question,) = drawn.ask(np.empty((0, 0, 0), np.int16), rng)
        (panel,) = drawn.scene.things
        center = np.linalg.inv(drawn.scene.room_from_world()) @ [*panel.center, 1.0]
        in_view = drawn.world_to_camera @ center
        pixel = np.rad2deg(np.arctan2(-in_view[:, 0], in_view[:, 2]))  # to the left of the view's middle
        best = int(np.abs(pixel).argmin())
        ahead = (drawn.world_to_camera[0] @ np.linalg.inv(drawn.world_to_camera[best]))[:3, 2]
        turn = float(np.rad2deg(np.arctan2(-ahead[0], ahead[2])))
        nearest = 90 * round(turn / 90)
        truth = float(question.ground_truth)
        for scores, answer in ((exact, turn + pixel[best]), (quarter, nearest + pixel[best]), (blind, turn)):
            possible = task.classes[np.abs(task.classes - answer % 360).argmin()]
            scores.append(np.mean(abs(possible - truth) / truth <= 1 - np.linspace(0.5, 0.95, 10)))
    return float(np.mean(exact)), float(np.mean(quarter)), float(np.mean(blind))


@pytest.mark.slow
def test_free_turns_need_the_pixel_and_more_than_a_quarter_turn() -> None:
    """As studies/free_turn.md says. The control is `PanelTurn`, of which the quarter is nearly all: studies/turn.md."""
    exact, quarter, blind = scores_of_rules(PanelFreeTurn(), 12)
    assert exact > 0.99 and quarter == pytest.approx(0.79, abs=0.02) and blind < 0.82
    exact, quarter, blind = scores_of_rules(PanelTurn(), 16)
    assert exact > 0.99 and quarter == pytest.approx(0.89, abs=0.02) and blind < 0.78


def test_the_page_has_the_licenses_that_published_models_state() -> None:
    """A published model adds its row by its own file."""
    assert licenses.document() == licenses.DOCUMENT.read_text(encoding="utf-8")
    every = [loader for loader in loaders() if loader.__module__.startswith("zoo.published.")]
    published = [loader for loader in every if loader.released]  # others have random weights
    assert published and all(loader.licensed is not None for loader in published)
