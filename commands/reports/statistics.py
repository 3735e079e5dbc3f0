"""The difference of two settings, with an interval over their trainings and scenes.

Two things vary when an experiment is repeated: the trainings, and the scenes of the test. The variances are added:

    variance = s_A^2 / n_A + s_B^2 / n_B + variance over scenes of the mean difference

**Trainings.** n_A trainings of one setting and n_B of the other are independent samples, also where their seeds are
equal: over 507 pairs of settings of the studies, the scores of equal seeds correlate by 0.11, and pairing them would
cost half of the degrees of freedom. Two tests of the same trainings are paired: the differences of the trainings are
one sample.

**Scenes.** The questions of a scene share its video, so their errors are correlated. A measure is a weighted sum of
means; a scene's part of it is the weighted sum of its questions' distances from these means, and the variance of the
parts is that of the measure (linearization, the closed form of a bootstrap that draws scenes with replacement:
Cameron & Miller 2015, "A practitioner's guide to cluster-robust inference"). The same questions on both sides are
subtracted first.

**Interval.** Student's t with the degrees of freedom of Welch and Satterthwaite for the sum. docs/concepts/rules.md has
the share of simulated experiments in which it holds the truth (`python -m docs.coverage`). What differs between seeds
in single scenes is in both variances: the interval then errs on the wide side (Owen 2007, "The pigeonhole bootstrap").
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from jaxtyping import Float64
from scipy.special import nctdtrinc, stdtr, stdtrit

from commands.reports.scores import Tested, scores_of

LEVEL, POWER = 0.95, 0.8
FEWEST = 3  # trainings of a setting of which a difference is shown; of fewer it is a lead
ONE_SEED = "one seed: the interval is over scenes alone and says nothing about other trainings"
Scores = Float64[np.ndarray, " seeds"]


@dataclass(frozen=True)
class Difference:
    """Score of one setting minus the score of another, in 0..1.

    Attributes:
        value: The difference of the means over seeds; NaN where a side has no score in the measure.
        low: Lower end of the 95 % interval; None without an interval.
        high: Upper end.
        p: Two-sided p-value of the same t-test; None without an interval.
        least: The smallest true difference that four of five repetitions of the experiment would show, as an interval
            without 0; None where it is unknown: with one seed, and without an interval.
        seeds: The number of trainings of the side that has fewer.
        note: Why there is no interval, or what it does not cover; else "".
    """

    value: float
    low: float | None = None
    high: float | None = None
    p: float | None = None
    least: float | None = None
    seeds: int = 0
    note: str = ""


def difference(ours: Sequence[Tested], others: Sequence[Tested], measure: str) -> Difference:
    """Compare two settings, each with one test per training, or two tests of the same trainings.

    All trainings of either side count. Where both sides have tests of the same trainings, other trainings are left
    out. Tests of different questions are compared scene by scene on each side alone. The interval is described in the
    module's docstring; `least` is the noncentrality at which a test with its degrees of freedom has a power of 80 %, in
    standard errors: 2.8 for many degrees of freedom, 5.65 for two.

    Args:
        ours: Tests of a setting.
        others: Tests of the setting that is subtracted.
        measure: See `commands.reports.scores`.
    """
    ours, others, is_paired = _pair_by_training(ours, others)
    scores = [np.array(scores_of(side, measure)) for side in (ours, others)]
    if not all(map(len, scores)):
        return Difference(math.nan, note="no score")
    result = Difference(float(scores[0].mean() - scores[1].mean()), seeds=min(map(len, scores)))
    if reason := _why_not_comparable(ours, others, measure):
        return replace(result, note=reason)
    frames = [_mean_over_seeds(side) for side in (ours, others)]
    if ours[0].asked == others[0].asked:
        frames = [frames[0].assign(score=frames[0]["score"] - frames[1]["score"].reindex(frames[0].index))]
    parts = [(frame, side[0].weights(measure)) for frame, side in zip(frames, (ours, others), strict=False)]
    return _with_interval(result, parts, [scores[0] - scores[1]] if is_paired else scores)


def margin(tests: Sequence[Tested], score: float, measure: str) -> Difference:
    """Compare a setting with a number, such as the score of an oracle, which counts as known exactly."""
    scores = np.array(scores_of(tests, measure))
    if not len(scores):
        return Difference(math.nan, note="no score")
    result = Difference(float(scores.mean()) - score, seeds=len(scores))
    if reason := _why_not_comparable(tests, tests, measure):
        return replace(result, note=reason)
    return _with_interval(result, [(_mean_over_seeds(tests), tests[0].weights(measure))], [scores])


def _with_interval(
    result: Difference, parts: Sequence[tuple[pd.DataFrame, pd.DataFrame]], samples: Sequence[Scores]
) -> Difference:
    """Return a difference with its interval, or with the reason why it has none.

    Args:
        result: The difference.
        parts: Questions and their weights: of the mean difference over seeds, or of each side alone.
        samples: The scores by seed whose means make up the difference.
    """
    terms: list[tuple[float, int]] = []  # of the variance, with their degrees of freedom
    for questions, weights in parts:
        variance, scenes = variance_over_scenes(questions, weights)
        if scenes < 2:
            return replace(result, note="a question type has one scene" if scenes else "no mean over questions")
        terms.append((variance, scenes - 1))
    if result.seeds > 1:
        terms += [(float(own.var(ddof=1)) / len(own), len(own) - 1) for own in samples]
    variance = sum(own for own, _ in terms)
    if has_spread := variance > 1e-24:
        freedom = variance**2 / sum(own**2 / degrees for own, degrees in terms)
        error, quantile = math.sqrt(variance), float(stdtrit(freedom, (1 + LEVEL) / 2))
        low, high = (max(-1.0, result.value - quantile * error), min(1.0, result.value + quantile * error))
        result = replace(result, low=low, high=high, p=2 * float(stdtr(freedom, -abs(result.value) / error)))
    else:  # all seeds and scenes have the same difference, which may be 0
        result = replace(result, low=result.value, high=result.value, p=float(abs(result.value) < 1e-12))
    if result.seeds == 1:
        return replace(result, note=ONE_SEED)
    if not has_spread:
        return result
    least = float(nctdtrinc(freedom, 1 - POWER, quantile)) * error
    return replace(result, least=least if least < 1 else None)


def shown(family: Sequence[Difference]) -> list[bool]:
    """Return which differences of a family are shown.

    A difference is shown if it has at least three trainings on either side, and stays below a level of 5 % by Holm's
    correction (Holm 1979, "A simple sequentially rejective multiple test procedure"), which holds for all differences
    of the family together.
    """
    ranked = sorted((own.p, place) for place, own in enumerate(family) if own.p is not None and own.seeds >= FEWEST)
    found: set[int] = set()
    for rank, (p, place) in enumerate(ranked):
        if p > (1 - LEVEL) / (len(ranked) - rank):
            break
        found.add(place)
    return [place in found for place in range(len(family))]


def verdicts(family: Sequence[Difference], interest: float) -> list[str]:
    """Return what a study says of each difference of a family: "higher", "lower", "equal", "unknown" or "lead".

    *Higher* and *lower* are `shown`. Of the others, the interval says how large they may be. If it lies within the
    least effect of interest, the settings are equal for the purpose of the study; else nothing is known. With fewer
    than three trainings on a side, a difference is a lead, whatever its interval is.

    Args:
        family: The differences of one comparison.
        interest: The least effect of interest, fixed before the study, in 0..1.
    """
    return [_verdict(each, is_shown, interest) for each, is_shown in zip(family, shown(family), strict=True)]


def _verdict(found: Difference, is_shown: bool, interest: float) -> str:
    if found.low is None or found.high is None:
        return ""
    if found.seeds < FEWEST:
        return "lead"
    if is_shown:
        return "higher" if found.value > 0 else "lower"
    bound = max(abs(found.low), abs(found.high))
    return f"{'equal' if bound <= interest else 'unknown'}: within +-{bound:.3f}"


def variance_over_scenes(questions: pd.DataFrame, weights: pd.DataFrame) -> tuple[float, int]:
    """Return the variance of a weighted sum of means over other scenes, and the number of scenes.

    Of several means with questions about different scenes, it is the least number, since a mean over one scene has no
    variance that could be estimated.

    Args:
        questions: "score" and "scene" of each question.
        weights: See `Tested.weights`.
    """
    own = questions.loc[weights.index]
    distances = own["score"] - own["score"].groupby(weights["part"]).transform("mean")
    parts = (weights["weight"] * distances).groupby(own["scene"]).sum()
    fewest = own["scene"].groupby(weights["part"]).nunique().min() if len(parts) else 0
    return float((parts**2).sum()) * len(parts) / max(1, len(parts) - 1), int(fewest)


def _pair_by_training(
    ours: Sequence[Tested], others: Sequence[Tested]
) -> tuple[Sequence[Tested], Sequence[Tested], bool]:
    """Return the tests to compare, in one order if both sides are tests of the same trainings, and whether they are."""
    ours_by, others_by = ({each.training: each for each in side if each.training} for side in (ours, others))
    both = [training for training in ours_by if training in others_by]
    if not both:
        return ours, others, False
    return [ours_by[each] for each in both], [others_by[each] for each in both], True


def _why_not_comparable(ours: Sequence[Tested], others: Sequence[Tested], measure: str) -> str:
    tests = [*ours, *others]
    if len({(each.benchmark, each.scorer) for each in tests}) > 1:
        return "other benchmark or scorer"
    if any(each.asked != side[0].asked for side in (ours, others) for each in side):
        return "seeds with other questions"
    if ours[0].asked == others[0].asked:
        return ""
    asked = [set(side[0].questions.loc[side[0].weights(measure).index, "question_type"]) for side in (ours, others)]
    return "" if asked[0] == asked[1] else "other question types"


def _mean_over_seeds(tests: Sequence[Tested]) -> pd.DataFrame:
    questions = tests[0].questions
    scores = np.mean([each.questions["score"].reindex(questions.index) for each in tests], axis=0)
    return questions.assign(score=scores)
