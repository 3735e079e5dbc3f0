"""Bootstrap intervals of the difference of two tests of one model, and of two settings with several seeds.

Resampling draws questions with replacement, or scenes with all of their questions (Cameron, Gelbach & Miller 2008,
"pairs cluster bootstrap"). The questions of a scene share its video, so their errors are correlated: the interval by
scene holds for other scenes, the interval by question for other questions about the same scenes. What is compared
shares these draws, since the difference is resampled.

Trainings of a setting differ as well: the seeds are resampled with the scenes, those of each setting by themselves,
or in pairs where the same models are tested twice. Of few seeds, the differences from their mean are enlarged to the
variance of a sample (Rao & Wu 1988), and the interval to the quantile of Student's t, with the degrees of freedom of
Welch (1947) and Satterthwaite (1946): without it, an interval of 95 % over three seeds covers 87 % where trainings
differ most. A single seed of a setting tells nothing about others. Where the trainings hardly differ, resampling both
ways errs on the wide side (Owen 2007, "The pigeonhole bootstrap").
"""

from __future__ import annotations

import warnings
from collections.abc import Hashable, Iterator, Sequence
from functools import lru_cache

import numpy as np
from jaxtyping import Float, Int
from scipy.special import stdtrit

from zoo.benchmarks import Benchmark

RESAMPLES, SEED, LEVEL = 10_000, 0, 0.95
NORMAL = 1.96  # standard errors on each side of an interval of 95 %
POWER = (NORMAL + 0.84) / (2 * NORMAL)  # of an interval's width: what is shown in 80 % of all repetitions of a study
AT_ONCE = 5_000_000  # draws in memory, 8 bytes each


def observed(
    differences: Float[np.ndarray, "Q P"], question_types: Sequence[str], benchmark: Benchmark
) -> Float[np.ndarray, "M P"]:
    """Return the difference of each pair of runs in each measure; NaN for a measure without questions.

    Args:
        differences: Score differences, one row per question, one column per pair.
        question_types: The type of each question.
        benchmark: Defines the types and measures.
    """
    clusters = np.zeros(len(question_types), int)
    return _measures(*_by_cluster(differences, question_types, clusters, benchmark), benchmark)[0]


def intervals(
    differences: Float[np.ndarray, "Q P"],
    question_types: Sequence[str],
    clusters: Sequence[Hashable],
    benchmark: Benchmark,
    *,
    resamples: int = RESAMPLES,
    seed: int = SEED,
) -> Float[np.ndarray, "2 M P"]:
    """Return the percentile interval (2.5 % and 97.5 %) of each pair's difference in each measure.

    A macro mean covers the types that occur in a resample; a resample without questions of a measure is ignored there.
    NaN for a measure without questions. Two runs with equal answers get exactly (0, 0).

    Args:
        differences: Score differences, one row per question, one column per pair.
        question_types: The type of each question.
        clusters: The unit of resampling that each question belongs to, such as its scene.
        benchmark: Defines the types and measures.
        resamples: Number of resamples.
        seed: Seed of the draws.
    """
    sums, counts = _by_cluster(differences, question_types, _numbered(clusters), benchmark)
    drawn = [_measures(*each, benchmark) for each in _resampled(sums, counts, resamples, seed)]
    return _percentiles(drawn)


def seed_intervals(
    first: Float[np.ndarray, "S Q"],
    second: Float[np.ndarray, "T Q"],
    question_types: Sequence[str],
    clusters: Sequence[Hashable],
    benchmark: Benchmark,
    *,
    paired: bool = False,
    resamples: int = RESAMPLES,
    seed: int = SEED,
) -> Float[np.ndarray, "2 M"]:
    """Return the interval of the second setting's mean over seeds minus the first's, in each measure.

    It is the percentile interval, as much wider about the difference as Student's t is than the normal distribution.

    Args:
        first: Scores of the questions, one row per seed.
        second: The same of the other setting.
        question_types: The type of each question.
        clusters: The unit of resampling that each question belongs to, such as its scene.
        benchmark: Defines the types and measures.
        paired: The rows of both are tests of the same trained models, whose seeds are drawn together.
        resamples: Number of resamples.
        seed: Seed of the draws.
    """
    groups = [second - first] if paired else [second, -first]
    spread = [group.mean(0) + _enlarged(len(group)) * (group - group.mean(0)) for group in groups]
    sums, counts = _by_cluster(np.concatenate(spread).T, question_types, _numbered(clusters), benchmark)
    generators = [np.random.default_rng([seed, number]) for number in range(len(groups))]
    drawn = []
    for resampled, own_counts in _resampled(sums, counts, resamples, seed):
        times = [draw(rng, len(resampled), len(group)) for rng, group in zip(generators, groups, strict=True)]
        weights = np.concatenate([own / own.shape[1] for own in times], axis=1)
        drawn.append(_measures((resampled * weights[:, None]).sum(2, keepdims=True), own_counts, benchmark))
    return _for_few_seeds(_percentiles(drawn)[:, :, 0], groups, question_types, benchmark)


def could_show(low: float, high: float) -> float | None:
    """Return the smallest difference that tests with this interval would show, at a power of 80 %.

    None if it shows one, and for an interval without a width, of equal answers.
    """
    return POWER * (high - low) if low <= 0 <= high and low < high else None


def _for_few_seeds(
    bounds: Float[np.ndarray, "2 M"],
    groups: Sequence[Float[np.ndarray, "_ Q"]],
    question_types: Sequence[str],
    benchmark: Benchmark,
) -> Float[np.ndarray, "2 M"]:
    """Widen intervals by the degrees of freedom that the seeds leave; the scenes are many."""
    by_seed = [observed(group.T, question_types, benchmark) for group in groups if len(group) > 1]
    variances = [own.var(axis=1, ddof=1) / own.shape[1] for own in by_seed]
    satterthwaite = sum((own**2 / (each.shape[1] - 1) for own, each in zip(variances, by_seed, strict=True)), 0.0)
    center = sum(observed(group.mean(0)[:, None], question_types, benchmark)[:, 0] for group in groups)
    with np.errstate(divide="ignore", invalid="ignore"):  # seeds that don't differ at all, or answers
        freedom = ((bounds[1] - bounds[0]) / (2 * NORMAL)) ** 4 / satterthwaite
    few = np.isfinite(freedom) & (freedom > 0)
    wider = np.where(few, stdtrit(np.where(few, np.maximum(freedom, 1), 1), (1 + LEVEL) / 2) / NORMAL, 1.0)
    widened: np.ndarray = center + (bounds - center) * wider
    return np.where(wider == 1, bounds, widened)


def _enlarged(seeds: int) -> float:
    return float(np.sqrt(seeds / (seeds - 1))) if seeds > 1 else 1.0


def _numbered(clusters: Sequence[Hashable]) -> Int[np.ndarray, " Q"]:
    number = {cluster: i for i, cluster in enumerate(dict.fromkeys(clusters))}
    return np.array([number[cluster] for cluster in clusters])


def _resampled(
    sums: Float[np.ndarray, "C K P"], counts: Float[np.ndarray, "C K"], resamples: int, seed: int
) -> Iterator[tuple[Float[np.ndarray, "R K P"], Float[np.ndarray, "R K"]]]:
    """Yield the sums and counts of resamples of the clusters, some at a time."""
    # per type, only the clusters with such questions: most sums are zero where each question is a cluster
    present = [np.flatnonzero(column) for column in counts.T]
    tables = [np.column_stack((sums[rows, kind], counts[rows, kind])) for kind, rows in enumerate(present)]
    for times in _times_drawn(seed, resamples, len(sums)):
        every = [
            (times if len(rows) == len(sums) else times[:, rows]) @ table
            for rows, table in zip(present, tables, strict=True)
        ]
        resampled = np.stack(every, axis=1)
        yield resampled[..., :-1], resampled[..., -1]


def _percentiles(drawn: Sequence[Float[np.ndarray, "_ M P"]]) -> Float[np.ndarray, "2 M P"]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # a measure without questions
        bounds: np.ndarray = np.nanquantile(np.concatenate(drawn), [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=0)
    return bounds


def _times_drawn(seed: int, resamples: int, clusters: int) -> Iterator[Float[np.ndarray, "R C"]]:
    """Yield how often each cluster is drawn in each resample, some resamples at a time."""
    chunk = max(1, AT_ONCE // clusters)
    if resamples <= chunk:
        yield _all_times_drawn(seed, resamples, clusters)
        return
    rng = np.random.default_rng(seed)
    for start in range(0, resamples, chunk):
        yield draw(rng, min(chunk, resamples - start), clusters).astype(float)


@lru_cache(maxsize=2)  # the sections of a document are of the same questions
def _all_times_drawn(seed: int, resamples: int, clusters: int) -> Float[np.ndarray, "R C"]:
    return draw(np.random.default_rng(seed), resamples, clusters).astype(float)


def draw(rng: np.random.Generator, resamples: int, clusters: int) -> Int[np.ndarray, "R C"]:
    """Draw as many clusters as there are, with replacement; return the count of each in each resample."""
    drawn = rng.integers(clusters, size=(resamples, clusters)) + clusters * np.arange(resamples)[:, None]
    return np.bincount(drawn.ravel(), minlength=resamples * clusters).reshape(resamples, clusters)


def _by_cluster(
    differences: Float[np.ndarray, "Q P"],
    question_types: Sequence[str],
    cluster: Int[np.ndarray, " Q"],
    benchmark: Benchmark,
) -> tuple[Float[np.ndarray, "C K P"], Float[np.ndarray, "C K"]]:
    """Sum the differences and count the questions of each type in each cluster."""
    place = {kind: k for k, kind in enumerate(benchmark.question_types)}
    kinds = np.array([place[kind] for kind in question_types])
    shape = (int(cluster.max()) + 1, len(place))
    sums, counts = np.zeros((*shape, differences.shape[1])), np.zeros(shape)
    np.add.at(sums, (cluster, kinds), differences)
    np.add.at(counts, (cluster, kinds), 1.0)
    return sums, counts


def _measures(
    sums: Float[np.ndarray, "R K P"], counts: Float[np.ndarray, "R K"], benchmark: Benchmark
) -> Float[np.ndarray, "R M P"]:
    """Compute the measures from the sums and counts of the question types; NaN without questions."""
    place = {kind: k for k, kind in enumerate(benchmark.question_types)}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # without questions: 0 / 0, and the mean of no number
        types = sums / counts[..., None]
        columns = {
            c: np.nanmean(types[:, [place[kind] for kind in kinds]], 1) for c, kinds in benchmark.columns.items()
        }
        found = list(columns.values())
        for group in benchmark.groups.values():
            own = [place[kind] for kind in group]
            within = [columns[column] for column, kinds in benchmark.columns.items() if set(kinds) <= set(group)]
            found.append(sums[:, own].sum(1) / counts[:, own].sum(1)[:, None])
            found.append(np.nanmean(np.stack(within or [found[-1]], 1), 1))
    return np.stack(found, axis=1)
