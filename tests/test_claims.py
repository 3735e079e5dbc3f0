"""What the studies claim holds in their results, by the bounds that they set before anything was trained."""

from __future__ import annotations

import json
import os
import statistics
from functools import cache
from pathlib import Path

import pytest

from commands.studies.document import Cell, Document
from commands.studies.results import open_results
from commands.studies.study_file import OWN, read_study
from docs.scores import SCORES, filled

ROOT = Path(__file__).parents[1]
# measured by a user with the published code
USERS = {"Spatial-MLLM-v1.1-Instruct-135K": "0.5320", "Qwen2.5-VL-3B-Instruct": "0.2907"}


@pytest.fixture(autouse=True)
def in_repository(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


@cache
def tables(study: str) -> Document:
    plan = read_study(Path(f"studies/{study}.yaml"))
    return Document(plan, open_results(plan))


def mean(study: str, setting: str, column: str = "", test: str = OWN) -> float:
    """The mean over all seeds of a setting in a test."""
    scores = tables(study).scores(Cell(setting, column, test))
    assert len(scores) == len(tables(study).study.seeds)
    return statistics.mean(scores)


def blind(study: str, column: str = "") -> list[float]:
    """The blind baselines: the best constant, text, cameras."""
    return [tables(study).baselines[name][column] for name in ("constant", "text", "cameras")]


def test_quoted_scores_are_the_results() -> None:
    for file in {file for file, *_ in SCORES}:
        assert filled(file) == Path(file).read_text(encoding="utf-8"), "python -m docs.scores"


def test_the_task_of_panels_needs_images_and_cameras() -> None:
    constant, *others = blind("panels")
    images, prope = mean("panels", "images alone"), mean("panels", "PRoPE")
    perturbed = [mean("panels", "PRoPE", test=test) for test in tables("panels").study.settings["PRoPE"].tests]
    assert all(score <= constant + 0.1 for score in (*others, images))
    assert prope >= max(constant, *others, images) + 0.2
    assert len(perturbed) == 2 and all(score <= constant for score in perturbed)


@pytest.mark.parametrize("setting", ["PRoPE", "PRoPE, depth objective"])
@pytest.mark.parametrize(("study", "holds"), [("triangulation_long", True), ("triangulation", False)])
def test_a_model_triangulates_after_3200_steps_and_not_after_400(setting: str, study: str, holds: bool) -> None:
    """It exceeds all that does without parallax by 0.15."""
    without = [mean(study, "images alone", "parallax"), *blind(study, "parallax")]
    for test in ("cameras of another room", "frames at other centers"):
        without.append(mean(study, setting, "parallax", test))
    assert (mean(study, setting, "parallax") >= max(without) + 0.15) == holds


@pytest.mark.skipif("ZOO_GOLDEN" not in os.environ, reason="ZOO_GOLDEN is unset: no published numbers")
def test_a_users_scores_are_as_reported() -> None:
    published = json.loads((Path(os.environ["ZOO_GOLDEN"]) / "published.json").read_text(encoding="utf-8"))
    rows = published["room_size_arkitscenes_150"]["rows"]
    assert {model: f"{rows[model]['micro']:.4f}" for model in USERS} == USERS
