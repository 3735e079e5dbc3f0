"""The best constant beside a search by brute force, and on the real questions about the size of a room."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from callbacks.baselines import best_constant, constant_baseline
from zoo.benchmarks import SQA3D, VSIBench

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
    [
        pytest.param(each, marks=() if each in ("thinking_in_space", "geovr") else pytest.mark.slow)
        for each in VSIBench.scorers
    ],
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


@pytest.mark.parametrize("scorer", VSIBench.scorers)
def test_of_letters_it_is_the_most_frequent_and_of_free_answers_one_of_the_accepted(scorer: str) -> None:
    assert best_constant(list("ABBCB"), CHOICE, VSIBench(), scorer) == "B"
    assert best_constant(["two\n2", "2\n3", "4"], "how", SQA3D(), "exact_match") in ("2", "two")
    assert best_constant(["inf", "nan"], NUMERIC, VSIBench(), scorer) == ""  # no number: nothing to answer


def real_questions(file: Path) -> list[dict[str, Any]]:
    rows = map(json.loads, file.read_text().splitlines())
    return [{**row, "id": str(row["id"]), "ground_truth": str(row["ground_truth"])} for row in rows]


def test_constants_answer_more_of_vsibench_than_a_published_baseline(realdata: Path) -> None:
    """docs/guide/published_models.md: Qwen2.5-VL-3B has 27.3."""
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
