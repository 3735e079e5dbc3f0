"""The difference of two settings: against a bootstrap, and how often its interval holds the truth."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import scipy.stats

from commands.reports.scores import Tested
from commands.reports.statistics import Difference, difference, margin, shown, verdicts
from docs.coverage import PAGE, TRAININGS, Trainings, coverage
from zoo.benchmarks import VSIBench

BENCHMARK = VSIBench()
KIND = "object_counting"


def a_test(scores: Sequence[float], seed: int | None = 0, *, kinds=None, scenes=None, start=0, **more: Any) -> Tested:
    """A test with these scores; by default of one question type, each question about a scene of its own."""
    ids = [f"q{start + number}" for number in range(len(scores))]
    columns = {"question_type": kinds or KIND, "scene": scenes or ids, "score": scores}
    return Tested("", "", seed, "VSIBench", "spatial_mllm", pd.DataFrame(columns, index=ids), **more)


def several(scores: np.ndarray, trainings: Sequence[str] | None = None, **options) -> list[Tested]:
    """A test per row of scores, with one seed after the other; of trainings by their names."""
    names = trainings or [""] * len(scores)
    return [a_test(row, seed, training=names[seed], **options) for seed, row in enumerate(scores)]


# ---- Against other computations -------------------------------------------------------------------------------------


def measure_by_hand(scores: Sequence[float], kinds: Sequence[str], measure: str) -> float:
    if measure == "micro":
        return sum(scores) / len(scores)
    of_type = {kind: [s for s, own in zip(scores, kinds, strict=True) if own == kind] for kind in dict.fromkeys(kinds)}
    means = {kind: sum(own) / len(own) for kind, own in of_type.items()}
    directions = [mean for kind, mean in means.items() if kind in BENCHMARK.direction_types]
    others = [mean for kind, mean in means.items() if kind not in BENCHMARK.direction_types]
    together = sum(directions) / len(directions)
    return together if measure == "Rel. Dir." else sum([*others, together]) / (len(others) + 1)


@pytest.mark.parametrize("measure", ["micro", "macro", "Rel. Dir."])
def test_the_interval_over_scenes_is_that_of_a_bootstrap(measure: str) -> None:
    """60 scenes that share their difficulty among their questions of all types."""
    rng, scenes = np.random.default_rng(0), 60
    scene = rng.integers(scenes, size=900)
    names = [f"s{number}" for number in scene]
    kinds = [BENCHMARK.question_types[number] for number in rng.integers(10, size=900)]
    first, second = rng.uniform(size=(2, 900))
    second = second + rng.normal(0.1, 0.4, scenes)[scene]
    options = {"kinds": kinds, "scenes": names}
    found = difference([a_test(second, **options)], [a_test(first, **options)], measure)
    value = measure_by_hand(second, kinds, measure) - measure_by_hand(first, kinds, measure)
    assert found.value == pytest.approx(value, abs=1e-12)
    rows_of = [np.flatnonzero(scene == own) for own in range(scenes)]
    drawn = []
    for _ in range(600):
        rows = np.concatenate([rows_of[own] for own in rng.integers(scenes, size=scenes)])
        drawn.append(measure_by_hand((second - first)[rows], [kinds[row] for row in rows], measure))
    half = scipy.stats.t.ppf(0.975, scenes - 1) * np.std(drawn)
    assert (found.high - found.low) / 2 == pytest.approx(half, rel=0.12)
    alone = difference([a_test(second, kinds=kinds)], [a_test(first, kinds=kinds)], measure)
    assert (alone.high - alone.low) / 2 < 0.85 * half  # the control: as if all questions were independent


@pytest.mark.parametrize("scorer", BENCHMARK.scorers)
def test_the_weights_of_questions_add_up_to_every_measure(scorer: str) -> None:
    """Also where a scorer pools the types that count as one; the scores are those of the benchmark."""
    rng = np.random.default_rng(6)
    kinds = [BENCHMARK.question_types[number] for number in rng.integers(10, size=200)]
    test = replace(a_test(rng.uniform(size=200), kinds=kinds), scorer=scorer)
    by_type = {kind: own.tolist() for kind, own in test.questions.groupby("question_type")["score"]}
    result = BENCHMARK.aggregate(by_type, scorer)
    assert (test.score("macro"), test.score("acc/micro")) == (result["all"]["macro"], result["acc"]["micro"])
    assert test.measures.keys() >= {*BENCHMARK.columns, *BENCHMARK.question_types, "macro", "micro", "mra/macro"}
    for measure, score in test.measures.items():
        weights = test.weights(measure)["weight"]
        assert (weights * test.questions["score"][weights.index]).sum() == pytest.approx(score, abs=1e-12), measure


def by_hand(*terms: tuple[float, int]) -> tuple[float, float, float]:
    """The standard error of a sum of variances, its degrees of freedom, and half of its interval."""
    total = sum(variance for variance, _ in terms)
    freedom = total**2 / sum(variance**2 / degrees for variance, degrees in terms)
    return math.sqrt(total), freedom, scipy.stats.t.ppf(0.975, freedom) * math.sqrt(total)


def test_variances_over_seeds_and_scenes_are_added() -> None:
    rng = np.random.default_rng(1)
    ours, others = rng.uniform(size=(5, 50)), rng.uniform(size=(3, 50))  # all trainings of either side count
    value, scenes = ours.mean() - others.mean(), ours.mean(0) - others.mean(0)
    trainings = [(side.mean(1).var(ddof=1) / len(side), len(side) - 1) for side in (ours, others)]
    error, freedom, half = by_hand(*trainings, (scenes.var(ddof=1) / 50, 49))
    found = difference(several(ours), several(others), "micro")
    assert (found.seeds, found.note) == (3, "")
    assert [found.low, found.value, found.high] == pytest.approx([value - half, value, value + half], abs=1e-12)
    assert scipy.stats.nct.sf(half / error, freedom, found.least / error) == pytest.approx(0.8, abs=1e-3)
    turned = difference(several(others), several(ours), "micro")
    assert [turned.low, turned.high] == pytest.approx([-found.high, -found.low])


def test_two_tests_of_the_same_trainings_are_paired() -> None:
    """By their trainings, not by their order; of a training that one test lacks, neither counts."""
    own = np.random.default_rng(1).uniform(size=(4, 50)) + np.array([[0.0], [0.3], [0.1], [0.2]])
    wrong = own - np.array([[0.2], [0.25], [0.3], [0.9]])
    tests, changed = several(own, list("abcd")), several(wrong, list("abcd"))[2::-1]
    found = difference(changed, tests, "micro")
    _, _, half = by_hand((np.var([0.2, 0.25, 0.3], ddof=1) / 3, 2), (0.0, 49))
    assert (found.seeds, found.value, found.high - found.value) == (3, pytest.approx(-0.25), pytest.approx(half))
    unpaired = difference(several(wrong[:3]), tests, "micro")  # the control: equal seeds alone pair nothing
    assert unpaired.value == pytest.approx(wrong[:3].mean() - own.mean()) and unpaired.low < found.low - 0.05


def test_a_margin_over_a_known_score_is_that_of_one_sample() -> None:
    scores = np.random.default_rng(8).uniform(0.5, 0.9, size=(4, 60))
    of_seeds, of_scenes = (scores.mean(1).var(ddof=1) / 4, 3), (scores.mean(0).var(ddof=1) / 60, 59)
    _, _, half = by_hand(of_seeds, of_scenes)
    found = margin(several(scores), 0.65, "micro")
    assert (found.value, found.high - found.value) == (pytest.approx(scores.mean() - 0.65), pytest.approx(half))
    assert shown([found]) == [True] and shown([margin(several(scores), 0.7, "micro")]) == [False]
    assert margin(several(scores[:1]), 0.1, "micro").note.startswith("one seed")
    assert shown([margin(several(scores[:2]), 0.1, "micro")]) == [False]  # a lead


def test_at_two_degrees_of_freedom_five_and_a_half_standard_errors_are_shown() -> None:
    """Where all scenes agree the seeds alone decide: the interval of three is 4.30 standard errors, the effect 5.65."""
    found = difference(several(np.repeat([[0.1], [0.2], [0.4]], 9, axis=1)), several(np.zeros((3, 9))), "micro")
    error = np.std([0.1, 0.2, 0.4], ddof=1) / math.sqrt(3)
    assert (found.high - found.value) / error == pytest.approx(4.303, abs=1e-3)
    assert found.least / error == pytest.approx(5.65, abs=0.02)


# ---- What a difference means ----------------------------------------------------------------------------------------


def test_p_is_below_5_percent_where_the_interval_is_without_0() -> None:
    chance = np.random.default_rng(2)
    found = [
        difference(several(chance.normal(shift, 0.1, (3, 20))), several(chance.normal(0, 0.1, (3, 20))), "micro")
        for shift in np.linspace(-0.15, 0.15, 60)
    ]
    is_shown = [each.p < 0.05 for each in found]
    assert is_shown == [not each.low <= 0 <= each.high for each in found] and 10 < sum(is_shown) < 50


def test_differences_of_a_family_are_corrected_by_holm() -> None:
    """The control: each of the first three alone is below 5 %."""

    def of(p: float | None, value: float = 0.1, half: float = 0.2, seeds: int = 3) -> Difference:
        return Difference(value, value - half, value + half, p=p, seeds=seeds)

    family = [of(0.01), of(0.04, -0.2, 0.19), of(0.03), of(0.6, 0.01, 0.03), of(1e-9, seeds=2), Difference(math.nan)]
    assert verdicts(family, 0.05) == ["higher", "unknown: within +-0.390", "unknown: within +-0.300"] + [
        "equal: within +-0.040",
        "lead",
        "",
    ]
    assert verdicts([of(0.01), of(0.016, -0.2), of(0.03)], 0.05) == ["higher", "lower", "higher"]
    alone = [verdicts([each], 0.05)[0] for each in family[:3]]
    assert alone == ["higher", "lower", "higher"]


def test_of_ten_comparisons_without_an_effect_one_is_shown_in_5_percent_of_studies() -> None:
    """Without the correction it would be in 40 %."""
    chance = np.random.default_rng(3)
    studies = [[Difference(0.01, -0.5, 0.5, p=float(p), seeds=3) for p in chance.uniform(size=10)] for _ in range(2000)]
    share = np.mean([any(each in ("higher", "lower") for each in verdicts(family, 0.05)) for family in studies])
    assert 0.035 < share < 0.065
    assert np.mean([any(each.p < 0.05 for each in family) for family in studies]) > 0.3


# ---- How often the interval holds the truth -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("trainings", "rounds", "tolerance"),
    [(TRAININGS[1], 60, 0.07), *(pytest.param(each, 300, 0.04, marks=pytest.mark.slow) for each in TRAININGS)],
)
def test_intervals_hold_the_truth_as_often_as_the_rules_say(
    trainings: Trainings, rounds: int, tolerance: float
) -> None:
    """The control: an interval over scenes alone holds it too rarely."""
    rules = PAGE.read_text(encoding="utf-8").splitlines()
    (row,) = [line for line in rules if line.startswith(f"| {trainings.name} |")]
    held, alone = coverage(trainings, 3, rounds)
    assert held == pytest.approx(float(row.split("|")[2]), abs=tolerance)
    assert alone < held - 0.05


@pytest.mark.slow
def test_what_a_study_can_show_is_shown_in_four_of_five_repetitions() -> None:
    """Three seeds that differ by 0.05, and equal scenes; a third of the effect is shown in few."""
    rng, rounds, error = np.random.default_rng(3), 120, 0.05 / math.sqrt(3)
    shown = {1.0: 0, 1 / 3: 0}
    for _ in range(rounds):
        ours = np.repeat(rng.normal(0, 0.05, (3, 1)), 8, axis=1)
        for share in shown:
            shown[share] += difference(several(ours + share * 5.65 * error), several(np.zeros((3, 8))), "micro").low > 0
    assert 0.7 * rounds < shown[1.0] < 0.9 * rounds and shown[1 / 3] < 0.35 * rounds


# ---- What can't be compared -----------------------------------------------------------------------------------------


def test_one_seed_says_nothing_about_trainings() -> None:
    ours, others = np.random.default_rng(4).uniform(size=(2, 3, 30))
    found = difference(several(ours), several(others[:1]), "micro")
    assert found.seeds == 1 and found.value == pytest.approx(ours.mean() - others[0].mean())
    assert found.low < found.value < found.high and found.least is None and found.note.startswith("one seed")


def test_a_difference_that_all_seeds_and_scenes_share_is_shown_and_a_tie_is_equal() -> None:
    right, wrong = several(np.ones((3, 40))), several(np.zeros((3, 40)))
    ours = several(np.random.default_rng(5).uniform(size=(3, 40)), list("abc"))  # of the same trainings
    for first, second, value, said in (
        (right, wrong, 1.0, "higher"),
        (wrong, right, -1.0, "lower"),
        (right, right, 0.0, "equal: within +-0.000"),
        (ours, ours, 0.0, "equal: within +-0.000"),
    ):
        found = difference(first, second, "micro")
        assert (found.value, found.low, found.high, found.p, found.note) == (value, value, value, value == 0, "")
        assert verdicts([found], 0.02) == [said]
        alone = difference(first[:1], second[:1], "micro")  # the control: one seed shows nothing
        assert alone.note.startswith("one seed") and verdicts([alone], 0.02) == ["lead"]


def test_there_is_no_interval_with_other_question_types() -> None:
    ours, others = np.random.default_rng(5).uniform(size=(2, 3, 40))
    one = {"scenes": ["a"] * 40}
    assert difference(several(ours, **one), several(others, **one), "micro").note == "a question type has one scene"
    other_kind = difference(several(ours), several(others, kinds=["route_planning"] * 40), "micro")
    assert (other_kind.low, other_kind.note) == (None, "other question types")
    absent = difference(several(ours), several(others), "room_size_estimation")
    assert math.isnan(absent.value) and absent.note == "no score"
    corpus = [a_test(row, seed, corpus={"cider": 0.5 + seed}) for seed, row in enumerate(ours)]
    assert difference(corpus, corpus, "cider").note == "no mean over questions"
    # other questions of the same type: both sides have scenes of their own
    apart = difference(several(ours), several(others, start=100), "micro")
    scenes = ((side.mean(0).var(ddof=1) / 40, 39) for side in (ours, others))
    trainings = ((side.mean(1).var(ddof=1) / 3, 2) for side in (ours, others))
    _, _, half = by_hand(*scenes, *trainings)
    assert apart.high - apart.value == pytest.approx(half)
