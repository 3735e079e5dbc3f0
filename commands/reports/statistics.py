"""The difference of two settings, with an interval over their trainings and scenes.

Two things vary when an experiment is repeated: the seeds of the trainings, and the scenes of the test. Both variances
are estimated and added:

    variance = variance over seeds / number of seeds + variance over scenes / number of scenes

**Seeds.** With the same seeds on both sides, which share the order of the data, the differences of each pair are one
sample; else the variances of both sides are added.

**Scenes.** The questions of a scene share its video, so their errors are correlated. A measure is a weighted sum of
means; a scene's part of it is the weighted sum of its questions' distances from these means, and the variance of the
parts is that of the measure (linearization, the closed form of a bootstrap that draws scenes with replacement:
Cameron & Miller 2015, "A practitioner's guide to cluster-robust inference"). The same questions on both sides are
subtracted first.

**Interval.** Student's t with the degrees of freedom of Welch and Satterthwaite for the sum. With three seeds that
differ much they are two, and with seeds that hardly differ many. These degrees are themselves estimated: where both
variances are large, a 95 % interval holds the truth in 92 % of simulated experiments with three seeds, in 88 % with
two, and in 94 % with five. What differs between seeds in single scenes is in both
variances: the interval then errs on the wide side (Owen 2007, "The pigeonhole bootstrap").
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from scipy.special import nctdtrinc, stdtr, stdtrit

from commands.reports.scores import Tested, scores_of

LEVEL, POWER = 0.95, 0.8
ONE_SEED = "one seed: the interval is over scenes alone and says nothing about other trainings"


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
        seeds: The number of pairs of trainings; unpaired, the smaller number of trainings.
        paired: Whether the trainings are paired by their seeds.
        note: Why there is no interval, or what it does not cover; else "".
    """

    value: float
    low: float | None = None
    high: float | None = None
    p: float | None = None
    least: float | None = None
    seeds: int = 0
    paired: bool = False
    note: str = ""


def difference(ours: Sequence[Tested], others: Sequence[Tested], measure: str) -> Difference:
    """Compare two settings, each with one test per seed.

    Seeds that both sides have are paired, and other seeds left out, if there are at least two such pairs or a side has
    no more than that. Tests of different questions are compared scene by scene on each side alone. The interval is
    described in the module's docstring; `least` is the noncentrality at which a test with its degrees of freedom has a
    power of 80 %, in standard errors: 2.8 for many degrees of freedom, 5.65 for two.

    Args:
        ours: Tests of a setting.
        others: Tests of the setting that is subtracted.
        measure: See `commands.reports.scores`.
    """
    ours, others, paired = _pair_by_seed(ours, others)
    seeds = min(len(ours), len(others))
    scores = [scores_of(side, measure) for side in (ours, others)]
    if not all(scores):
        return Difference(math.nan, note="no score")
    result = Difference(float(np.mean(scores[0]) - np.mean(scores[1])), seeds=seeds, paired=paired)
    if reason := _why_not_comparable(ours, others, measure):
        return replace(result, note=reason)
    # 1. Scenes.
    frames = [_mean_over_seeds(side) for side in (ours, others)]
    first, second = (side[0] for side in (ours, others))
    same = first.asked == second.asked
    if same:
        frames = [frames[0].assign(score=frames[0]["score"] - frames[1]["score"].reindex(frames[0].index))]
    terms: list[tuple[float, int]] = []  # of the variance, with their degrees of freedom
    for tested, frame in zip((first, second), frames, strict=False):
        variance, scenes = variance_over_scenes(frame, tested.weights(measure))
        if scenes < 2:
            return replace(result, note="a question type has one scene" if scenes else "no mean over questions")
        terms.append((variance, scenes - 1))
    # 2. Seeds.
    if seeds > 1:
        sides = [np.array(own) for own in scores]
        samples = [sides[0] - sides[1]] if paired else sides
        terms += [(float(own.var(ddof=1)) / len(own), len(own) - 1) for own in samples]
    # 3. Their sum.
    variance = sum(own for own, _ in terms)
    if has_spread := variance > 1e-24:
        freedom = variance**2 / sum(own**2 / degrees for own, degrees in terms)
        error, quantile = math.sqrt(variance), float(stdtrit(freedom, (1 + LEVEL) / 2))
        low, high = (max(-1.0, result.value - quantile * error), min(1.0, result.value + quantile * error))
        result = replace(result, low=low, high=high, p=2 * float(stdtr(freedom, -abs(result.value) / error)))
    else:  # all seeds and scenes have the same difference, which may be 0
        result = replace(result, low=result.value, high=result.value, p=float(abs(result.value) < 1e-12))
    if seeds == 1:
        return replace(result, note=ONE_SEED)
    if not has_spread:
        return result
    least = float(nctdtrinc(freedom, 1 - POWER, quantile)) * error
    return replace(result, least=least if least < 1 else None)


def verdicts(family: Sequence[Difference], interest: float) -> list[str]:
    """Return what a study says of each difference of a family: "higher", "lower", "equal" or "unknown".

    A difference is shown if it stays below a level of 5 % by Holm's correction (Holm 1979, "A simple sequentially
    rejective multiple test procedure"), which holds for all differences of the family together. Of the others, the
    interval says how large they may be. If it lies within the least effect of interest, the settings are equal for the
    purpose of the study; else nothing is known.

    Args:
        family: The differences of one comparison.
        interest: The least effect of interest, fixed before the study, in 0..1.
    """
    ranked = sorted((each.p, number) for number, each in enumerate(family) if each.p is not None and each.seeds > 1)
    shown: set[int] = set()
    for rank, (p, number) in enumerate(ranked):
        if p > (1 - LEVEL) / (len(ranked) - rank):
            break
        shown.add(number)
    return [_verdict(each, number in shown, interest) for number, each in enumerate(family)]


def _verdict(found: Difference, is_shown: bool, interest: float) -> str:
    if found.low is None or found.high is None or found.seeds < 2:
        return ""
    bound = max(abs(found.low), abs(found.high))
    if is_shown:
        return "higher" if found.value > 0 else "lower"
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


def _pair_by_seed(ours: Sequence[Tested], others: Sequence[Tested]) -> tuple[Sequence[Tested], Sequence[Tested], bool]:
    """Return the tests to compare, in the order of their seeds if they are paired, and whether they are."""
    ours_by, others_by = ({each.seed: each for each in side} for side in (ours, others))
    both = sorted(seed for seed in ours_by if seed is not None and seed in others_by)
    are_distinct = len(ours_by) == len(ours) and len(others_by) == len(others)
    if not both or not are_distinct or (len(both) == 1 and min(len(ours), len(others)) > 1):
        return ours, others, False
    return [ours_by[seed] for seed in both], [others_by[seed] for seed in both], True


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
