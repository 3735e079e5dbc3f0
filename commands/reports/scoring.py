"""Scores answers without a model, as a test does."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from commands.reports.predictions import Answer
from zoo.metrics import Profile, VSIBenchScore, is_parsable, score_answer


@dataclass(frozen=True)
class Tally:
    """What a file of answers scores. `failed_scenes` and the counts are named as in metrics.json."""

    result: dict[str, Any]  # as `VSIBenchScore.compute()` returns
    counts: dict[str, int]
    failed_scenes: list[dict[str, Any]]
    scores: dict[str, float]  # of each id
    without_truth: int  # answers that can't be scored, and aren't


def tally(answers: Sequence[Answer], scorer: Profile) -> Tally:
    """Scores every answer that has a ground truth; one of a scene that failed scores 0, whatever it says.

    Args:
        answers: each id once.
        scorer: the official scorer to follow, see `zoo.metrics`.
    """
    scored = [answer for answer in answers if answer.ground_truth]
    metric = VSIBenchScore(scorer)
    texts = ["" if answer.error else answer.prediction for answer in scored]
    truths, kinds = [answer.ground_truth for answer in scored], [answer.question_type for answer in scored]
    metric.update(texts, truths, kinds, [answer.id for answer in scored])
    failed = Counter((answer.scene, answer.error) for answer in scored if answer.error)
    unparsable = (
        not is_parsable(answer.prediction, answer.question_type, scorer) for answer in scored if not answer.error
    )
    return Tally(
        result=metric.compute(),
        counts={"questions": len(scored), "failed": sum(failed.values()), "unparsable": sum(unparsable)},
        failed_scenes=[{"scene": s, "error": e, "questions": n} for (s, e), n in sorted(failed.items())],
        scores={
            answer.id: score_answer(text, answer.ground_truth, answer.question_type, scorer)
            for text, answer in zip(texts, scored, strict=True)
        },
        without_truth=len(answers) - len(scored),
    )
