"""Paired bootstrap: how far the difference of two runs may be owed to the choice of questions, or of scenes.

Questions are drawn with replacement, as many as there are; or scenes are, and each brings all of its questions
(Cameron, Gelbach & Miller 2008, "pairs cluster bootstrap"). Questions of one scene share its video, so what a run
gets wrong there it often gets wrong together: by scene is the honest interval for other scenes, by question that for
other questions about these scenes. Both runs meet the same draws: the difference is what is resampled.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import numpy as np
from jaxtyping import Float, Int

from commands.reports.columns import COLUMNS, GROUPS, MEASURES
from zoo.metrics import QUESTION_TYPES

RESAMPLES, SEED, LEVEL = 10_000, 0, 0.95
AT_ONCE = 2_000_000  # draws held in memory: 8 bytes each, a few times


def observed(differences: Float[np.ndarray, "Q P"], question_types: Sequence[str]) -> Float[np.ndarray, "M P"]:
    """The difference of each pair of runs in each of MEASURES; NaN where a measure has no question.

    Args:
        differences: of the scores of each question, a column a pair.
    """
    every = np.zeros(len(question_types), int)
    sums, counts = _by_cluster(differences, question_types, every)
    return _measures(sums, counts)[0]


def intervals(
    differences: Float[np.ndarray, "Q P"],
    question_types: Sequence[str],
    clusters: Sequence[Hashable],
    *,
    resamples: int = RESAMPLES,
    seed: int = SEED,
) -> Float[np.ndarray, "2 M P"]:
    """The percentile interval (2.5 % and 97.5 %) of each pair's difference in each of MEASURES.

    A macro mean is that of the types that a resample holds; one that holds none of a measure's questions does not count
    for it. NaN where a measure has no question at all. Runs that answered alike get exactly (0, 0).

    Args:
        differences: of the scores of each question, a column a pair.
        clusters: what is drawn together: the scenes of the questions, or something else for each of them.
        resamples: how many.
        seed: the same seed gives the same draws.

    Raises:
        ValueError: the lists are not as long as there are questions.
    """
    if not len(question_types) == len(clusters) == len(differences):
        raise ValueError(f"{len(differences)} differences, {len(question_types)} types, {len(clusters)} clusters")
    number = {cluster: i for i, cluster in enumerate(dict.fromkeys(clusters))}
    sums, counts = _by_cluster(differences, question_types, np.array([number[cluster] for cluster in clusters]))
    rng, drawn = np.random.default_rng(seed), []
    chunk = max(1, AT_ONCE // len(number))
    for start in range(0, resamples, chunk):
        times = draw(rng, min(chunk, resamples - start), len(number)).astype(float)
        # a type at a time: where each question is a cluster, most of `sums` is zero
        there = [counts[:, kind] > 0 for kind in range(len(QUESTION_TYPES))]
        drawn.append(
            _measures(
                np.stack([times[:, own] @ sums[own, kind] for kind, own in enumerate(there)], axis=1),
                np.stack([times[:, own] @ counts[own, kind] for kind, own in enumerate(there)], axis=1),
            )
        )
    found = np.concatenate(drawn)
    bounds = np.full((2, *found.shape[1:]), np.nan)
    for measure in range(len(MEASURES)):
        values = found[:, measure]
        values = values[~np.isnan(values).any(1)]  # a resample without a measure's questions, the same for every pair
        if len(values):
            bounds[:, measure] = np.quantile(values, [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=0)
    return bounds


def draw(rng: np.random.Generator, resamples: int, clusters: int) -> Int[np.ndarray, "R C"]:
    """How often each cluster is drawn in each resample, with replacement, as many as there are."""
    drawn = rng.integers(clusters, size=(resamples, clusters)) + clusters * np.arange(resamples)[:, None]
    return np.bincount(drawn.ravel(), minlength=resamples * clusters).reshape(resamples, clusters)


def _by_cluster(
    differences: Float[np.ndarray, "Q P"], question_types: Sequence[str], cluster: Int[np.ndarray, " Q"]
) -> tuple[Float[np.ndarray, "C K P"], Float[np.ndarray, "C K"]]:
    """The sum of differences and the count of questions of each type in each cluster."""
    kinds = np.array([QUESTION_TYPES.index(kind) for kind in question_types])
    shape = (int(cluster.max()) + 1, len(QUESTION_TYPES))
    sums, counts = np.zeros((*shape, differences.shape[1])), np.zeros(shape)
    np.add.at(sums, (cluster, kinds), differences)
    np.add.at(counts, (cluster, kinds), 1.0)
    return sums, counts


def _measures(sums: Float[np.ndarray, "R K P"], counts: Float[np.ndarray, "R K"]) -> Float[np.ndarray, "R M P"]:
    """MEASURES from the sums and counts of the question types; NaN where there is no question."""
    places = {column: [QUESTION_TYPES.index(kind) for kind in kinds] for column, kinds in COLUMNS.items()}
    with np.errstate(invalid="ignore"):
        types = sums / counts[..., None]
        columns = {column: _nanmean(types[:, kinds]) for column, kinds in places.items()}
        means = []
        for group in GROUPS.values():
            own = [QUESTION_TYPES.index(kind) for kind in group]
            within = [columns[column] for column, kinds in COLUMNS.items() if set(kinds) <= set(group)]
            means.append(sums[:, own].sum(1) / counts[:, own].sum(1)[:, None])
            means.append(_nanmean(np.stack(within, 1)))
    return np.stack([*columns.values(), *means], axis=1)


def _nanmean(values: Float[np.ndarray, "R N P"]) -> Float[np.ndarray, "R P"]:
    known = ~np.isnan(values)
    total: np.ndarray = np.where(known, values, 0.0).sum(1) / known.sum(1)
    return total
