"""The bootstrap of tests and seeds against a slow and obvious one, what it must cover, and where it must be zero."""

from __future__ import annotations

import statistics

import numpy as np
import pytest
import scipy.stats

from commands.reports.bootstrap import could_show, draw, intervals, observed, seed_intervals
from commands.reports.loaded_runs import measures
from zoo.benchmarks import VSIBench

BENCHMARK = VSIBench()
COLUMNS, MEASURES, QUESTION_TYPES = BENCHMARK.columns, measures(BENCHMARK), BENCHMARK.question_types


def slow_measures(differences: list[float], kinds: list[str]) -> dict[str, float]:
    """The measures of some questions, one pair, as one would do it by hand."""
    values: dict[str, float] = {}
    types = {kind: [d for d, k in zip(differences, kinds, strict=True) if k == kind] for kind in QUESTION_TYPES}
    for column, among in COLUMNS.items():
        means = [sum(types[kind]) / len(types[kind]) for kind in among if types[kind]]
        if means:
            values[column] = sum(means) / len(means)
    for group, name in (("Acc.", "acc"), ("MRA", "mra"), ("All", "all")):
        among = BENCHMARK.groups[name]
        every = [d for kind in among for d in types[kind]]
        columns = [values[column] for column, kinds_of in COLUMNS.items() if column in values and kinds_of[0] in among]
        if every:
            values[f"{group} micro"] = sum(every) / len(every)
            values[f"{group} macro"] = sum(columns) / len(columns)
    return values


def slow_intervals(differences, kinds, clusters, resamples: int, seed: int) -> dict[str, tuple[float, float]]:
    """Draws clusters one after the other, and writes all of their questions down as often as they come."""
    names = list(dict.fromkeys(clusters))
    rng = np.random.default_rng(seed)
    found: dict[str, list[float]] = {}
    for _ in range(resamples):
        rows: list[int] = []
        for name in [names[rng.integers(len(names))] for _ in names]:
            rows += [row for row, cluster in enumerate(clusters) if cluster == name]
        for measure, value in slow_measures([differences[r] for r in rows], [kinds[r] for r in rows]).items():
            found.setdefault(measure, []).append(value)
    return {measure: tuple(np.percentile(values, [2.5, 97.5])) for measure, values in found.items()}


def questions(seed: int, count: int, scenes: int, types=QUESTION_TYPES):
    """Scores of two runs that share the difficulty of a scene."""
    rng = np.random.default_rng(seed)
    scene = rng.integers(scenes, size=count)
    easy = rng.uniform(0.2, 0.8, scenes)[scene]
    a, b = (rng.uniform(size=count) < easy + lift for lift in (0.0, 0.1))
    kinds = [types[i] for i in rng.integers(len(types), size=count)]
    return b.astype(float) - a.astype(float), kinds, [f"scene {i}" for i in scene]


@pytest.mark.parametrize("by_scene", [True, False])
@pytest.mark.parametrize("types", [QUESTION_TYPES, ("room_size_estimation", "object_rel_direction_easy")])
def test_it_equals_a_slow_bootstrap_with_the_same_draws(by_scene: bool, types) -> None:
    differences, kinds, scenes = questions(0, 60, 9, types)
    clusters = scenes if by_scene else list(range(60))
    fast = intervals(differences[:, None], kinds, clusters, BENCHMARK, resamples=300, seed=5)[:, :, 0]
    slow = slow_intervals(differences, kinds, clusters, 300, 5)
    now = observed(differences[:, None], kinds, BENCHMARK)[:, 0]
    for place, measure in enumerate(MEASURES):
        if measure in slow:
            np.testing.assert_allclose(fast[:, place], slow[measure], atol=1e-12)
            np.testing.assert_allclose(now[place], slow_measures(list(differences), kinds)[measure], atol=1e-12)
        else:
            assert np.isnan(fast[:, place]).all() and np.isnan(now[place])
    others = slow_intervals(differences, kinds, clusters, 300, 6)  # the control: other draws, another interval
    assert any(abs(fast[0, MEASURES.index(measure)] - others[measure][0]) > 1e-6 for measure in others)


def test_equal_runs_differ_by_exactly_zero_and_others_do_not() -> None:
    difference, kinds, scenes = questions(1, 200, 20)
    pairs = np.stack([np.zeros(200), difference, -difference, difference], 1)
    for clusters in (scenes, range(200)):
        low, high = intervals(pairs, kinds, clusters, BENCHMARK, resamples=500)
        assert (low[:, 0] == 0).all() and (high[:, 0] == 0).all()
        assert (low[:, 1] < high[:, 1]).all()
        np.testing.assert_allclose(low[:, 2], -high[:, 1], atol=1e-12)  # the other way round
        np.testing.assert_allclose(low[:, 3], low[:, 1], atol=1e-12)
    assert (observed(pairs, kinds, BENCHMARK)[:, 0] == 0).all()


def test_seeds_and_chunks_decide_what_they_should(monkeypatch: pytest.MonkeyPatch) -> None:
    difference, kinds, scenes = questions(2, 100, 10)
    first = intervals(difference[:, None], kinds, scenes, BENCHMARK, resamples=400)
    np.testing.assert_array_equal(first, intervals(difference[:, None], kinds, scenes, BENCHMARK, resamples=400))
    assert (first != intervals(difference[:, None], kinds, scenes, BENCHMARK, resamples=400, seed=1)).any()
    monkeypatch.setattr("commands.reports.bootstrap.AT_ONCE", 70)  # seven resamples at a time
    np.testing.assert_allclose(
        first, intervals(difference[:, None], kinds, scenes, BENCHMARK, resamples=400), atol=1e-12
    )


def test_draws_are_as_many_as_there_are_and_all_alike() -> None:
    times = draw(np.random.default_rng(0), 20_000, 7)
    assert (times.sum(1) == 7).all()
    np.testing.assert_allclose(times.mean(0), 1.0, atol=0.03)
    np.testing.assert_allclose(times.var(0), 6 / 7, atol=0.03)  # of a binomial with n = 7, p = 1/7


@pytest.mark.parametrize("shared", [True, False])
def test_by_scene_covers_the_truth_where_questions_of_a_scene_go_together(shared: bool) -> None:
    """Known truth, a mean of 0.1; 40 scenes with 10 questions each. By question the interval is far too short, but
    where scenes don't matter both cover."""
    rng, covered = np.random.default_rng(3), {"scene": 0, "question": 0}
    kinds, scenes = ["object_counting"] * 400, [i // 10 for i in range(400)]
    truth = 0.1
    rounds = 150
    by_scene, noise = rng.normal(truth, 0.2, (40, rounds)), rng.normal(0, 0.2, (400, rounds))
    differences = np.repeat(by_scene, 10, axis=0) + noise if shared else truth + 2 * noise
    for name, clusters in (("scene", scenes), ("question", range(400))):
        low, high = intervals(differences, kinds, clusters, BENCHMARK, resamples=400)[:, MEASURES.index("All micro")]
        covered[name] = int(((low <= truth) & (truth <= high)).sum())
    assert covered["scene"] >= 0.88 * rounds
    assert (covered["question"] < 0.75 * rounds) if shared else (covered["question"] >= 0.88 * rounds)


def slow_seed_intervals(first, second, kinds, clusters, paired: bool, resamples: int, seed: int):
    """Draws scenes, then seeds of each setting, and writes down the drawn questions of every drawn seed."""

    def enlarged(scores):
        factor = np.sqrt(len(scores) / (len(scores) - 1)) if len(scores) > 1 else 1.0
        return [scores.mean(0) + factor * (own - scores.mean(0)) for own in scores]

    names = list(dict.fromkeys(clusters))
    of_scenes, *of_seeds = (np.random.default_rng(key) for key in (seed, [seed, 0], [seed, 1]))
    settings = [(1, enlarged(second - first))] if paired else [(1, enlarged(second)), (-1, enlarged(first))]
    found: dict[str, list[float]] = {}
    for _ in range(resamples):
        drawn = [names[of_scenes.integers(len(names))] for _ in names]
        rows = [row for name in drawn for row, cluster in enumerate(clusters) if cluster == name]
        total: dict[str, float] = {}
        for (sign, scores), rng in zip(settings, of_seeds, strict=False):
            for own in [scores[rng.integers(len(scores))] for _ in scores]:
                for measure, value in slow_measures([own[r] for r in rows], [kinds[r] for r in rows]).items():
                    total[measure] = total.get(measure, 0.0) + sign * value / len(scores)
        for measure, value in total.items():
            found.setdefault(measure, []).append(value)
    bounds = {measure: tuple(np.percentile(values, [2.5, 97.5])) for measure, values in found.items()}
    groups = [[slow_measures(own, kinds) for own in sign * np.array(scores)] for sign, scores in settings]
    return {measure: by_student(*ends, measure, groups, paired) for measure, ends in bounds.items()}


def by_student(low: float, high: float, measure: str, groups, paired: bool) -> tuple[float, float]:
    """Widens an interval to Student's t; `groups` has enlarged seeds, whose mean is that of the seeds."""
    values = [[own[measure] for own in group] for group in groups if len(group) > 1]
    # enlarged by sqrt(n / (n - 1)): the variance of these, over n, is that of a sample
    variances = [statistics.pvariance(own) / len(own) for own in values]
    squares = sum(variance**2 / (len(own) - 1) for variance, own in zip(variances, values, strict=True))
    if not squares:
        return low, high
    factor = scipy.stats.t.ppf(0.975, max(1, ((high - low) / 3.92) ** 4 / squares)) / 1.96
    mean = sum(statistics.mean(own[measure] for own in group) for group in groups)
    return mean + (low - mean) * factor, mean + (high - mean) * factor


@pytest.mark.parametrize("paired", [True, False])
def test_seeds_and_scenes_equal_a_slow_bootstrap_with_the_same_draws(paired: bool, monkeypatch) -> None:
    difference, kinds, scenes = questions(4, 50, 8)
    rng = np.random.default_rng(0)
    first, second = rng.uniform(size=(3, 50)), rng.uniform(size=(3 if paired else 2, 50)) + difference
    options = {"paired": paired, "resamples": 200, "seed": 5}
    fast = seed_intervals(first, second, kinds, scenes, BENCHMARK, **options)
    slow = slow_seed_intervals(first, second, kinds, scenes, **options)
    for place, measure in enumerate(MEASURES):
        np.testing.assert_allclose(fast[:, place], slow[measure], atol=1e-12)
    monkeypatch.setattr("commands.reports.bootstrap.AT_ONCE", 70)
    np.testing.assert_allclose(fast, seed_intervals(first, second, kinds, scenes, BENCHMARK, **options), atol=1e-12)


def test_what_a_null_result_could_show() -> None:
    assert could_show(-1.96, 1.96) == pytest.approx(2.8)  # standard errors
    assert could_show(0.01, 0.2) is None and could_show(0.0, 0.0) is None


def test_of_one_model_tested_twice_it_is_the_paired_bootstrap() -> None:
    difference, kinds, scenes = questions(5, 80, 10)
    alone = seed_intervals(np.zeros((1, 80)), difference[None], kinds, scenes, BENCHMARK, paired=True, resamples=300)
    np.testing.assert_allclose(alone, intervals(difference[:, None], kinds, scenes, BENCHMARK, resamples=300)[:, :, 0])
    same = seed_intervals(difference[None], difference[None], kinds, scenes, BENCHMARK, paired=True, resamples=50)
    assert (same == 0).all()


@pytest.mark.parametrize(
    ("seeds", "spreads"),
    [
        pytest.param(5, (0.08, 0.08), marks=pytest.mark.slow),
        (3, (0.0, 0.15)),
        pytest.param(3, (0.15, 0.15), marks=pytest.mark.slow),
    ],
)
def test_it_covers_the_truth_where_trainings_differ_and_shows_what_it_says(
    seeds: int, spreads: tuple[float, float]
) -> None:
    """Some seeds of two settings, which differ by 0.1, and a spread of the trainings: scenes alone cover too little.

    The effect that an interval names as the smallest that it could show is shown in most repetitions, a third in few.
    """
    rng, rounds, count = np.random.default_rng(6), 120, 60
    kinds, truth = ["object_counting"] * count, 0.1
    covered, widths, shown = {"seeds": 0, "scenes": 0}, [], {1.0: 0, 1 / 3: 0}
    place = MEASURES.index("All micro")
    for _ in range(rounds):
        scene = rng.normal(0.5, 0.2, count)
        first, second = (
            scene + rng.normal(mean, spread, (seeds, 1)) + rng.normal(0, 0.2, (seeds, count))
            for mean, spread in zip((0, truth), spreads, strict=True)
        )
        low, high = seed_intervals(first, second, kinds, range(count), BENCHMARK, resamples=300)[:, place]
        covered["seeds"] += bool(low <= truth <= high)
        fixed = (second.mean(0) - first.mean(0))[:, None]
        only = intervals(fixed, kinds, range(count), BENCHMARK, resamples=300)[:, place, 0]
        covered["scenes"] += bool(only[0] <= truth <= only[1])
        widths.append(could_show((low - high) / 2, (high - low) / 2))  # of no effect at all
        for share in shown:  # the same study of another effect
            shown[share] += bool(low - truth + share * np.mean(widths) > 0)
    assert covered["seeds"] >= 0.91 * rounds and covered["scenes"] < 0.7 * rounds
    assert 0.65 * rounds < shown[1.0] < 0.95 * rounds and shown[1 / 3] < 0.35 * rounds
