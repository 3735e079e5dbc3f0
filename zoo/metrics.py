"""Scores of answers: of one answer, of prediction records, and as a torchmetrics metric of a whole test.

The scorers of VSI-Bench and their rules are in `zoo.benchmarks.scorers`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any
from uuid import uuid4

import torch
from jaxtyping import Int64
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from zoo.benchmarks import Benchmark, VSIBench
from zoo.files.fingerprint import fingerprint


def score_answer(
    prediction: str, ground_truth: str, question_type: str, profile: str = "spatial_mllm", *, scorer: str | None = None
) -> float:
    """Score one answer to a question of VSI-Bench as an official scorer does.

    Args:
        prediction: The model's answer.
        ground_truth: A number or an option letter.
        question_type: A question type of VSI-Bench.
        profile: The official scorer: spatial_mllm, thinking_in_space or lmms_eval_0.7.3.
        scorer: Alias of `profile`, which it overrides.

    Returns:
        A score in 0..1. 0.0 if the answer can't be parsed or the official scorer raises.

    Raises:
        ValueError: The question type or the scorer is unknown.

    Example:
        >>> count = VSIBench.numeric_types[1]
        >>> score_answer("about 4", "4", count)
        0.0
        >>> score_answer("about 4", "4", count, scorer="lmms_eval_0.7.3")
        1.0
    """
    return VSIBench().score(prediction, ground_truth, question_type, scorer or profile)


def with_scores(
    records: Iterable[Mapping[str, Any]], benchmark: Benchmark, scorer: str | None = None
) -> list[dict[str, Any]]:
    """Return the records of questions with their `score`, and the `benchmark` and `scorer` that computed it.

    A score by this scorer is kept. The score is None without a ground truth or a question type (free text), and 0 for a
    question that failed, whatever the record says.

    Args:
        records: Records as returned by a task's steps, or as in predictions.jsonl.
        benchmark: The benchmark of the questions.
        scorer: One of the benchmark's scorers. None is its default.

    Example:
        >>> kind = VSIBench.numeric_types[0]
        >>> record = {"id": "1", "question_type": kind, "prediction": "20", "ground_truth": "20"}
        >>> with_scores([record], VSIBench())[0]["score"]
        1.0
    """
    scorer = benchmark.find_scorer(scorer)
    made_by = {"benchmark": benchmark.name, "scorer": scorer}

    def score(record: Mapping[str, Any]) -> float | None:
        if not (record["ground_truth"] and record["question_type"]):
            return None
        if record.get("error"):
            return 0.0
        if made_by.items() <= record.items() and record.get("score") is not None:
            return float(record["score"])
        return float(benchmark.score(record["prediction"], record["ground_truth"], record["question_type"], scorer))

    return [{**record, "score": score(record), **made_by} for record in records]


class BenchmarkScore(Metric):
    """Scores of a benchmark by question type, with micro and macro means.

    Each sample id counts once, by its first row, because DistributedSampler repeats samples to fill its last round. All
    rows without an id count. A row holds the fingerprint of its id, the index of its question type, its score, and its
    error in degrees (NaN for other types). The latter are the bits of a float64 in an integer, so that no precision
    change of a module rounds them.

    Args:
        benchmark: Defines question types, scores and aggregation.
        scorer: One of the benchmark's scorers. None is its default.
        kwargs: Options of `torchmetrics.Metric`.

    Raises:
        ValueError: The scorer or a question type is unknown, or lists differ in length.
    """

    full_state_update = False
    higher_is_better = True
    rows: list[Int64[Tensor, "N 4"]]

    def __init__(self, benchmark: Benchmark, scorer: str | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.benchmark, self.scorer = benchmark, benchmark.find_scorer(scorer)
        self.add_state("rows", default=[], dist_reduce_fx="cat")

    def update(
        self,
        predictions: Sequence[str],
        ground_truths: Sequence[str],
        question_types: Sequence[str],
        sample_ids: Sequence[str] | None = None,
        scores: Sequence[float] | None = None,
    ) -> None:
        """Score answers and add them. The lists are parallel.

        Args:
            predictions: The model's answers.
            ground_truths: The true answers.
            question_types: The benchmark's type of each question.
            sample_ids: Ids of the questions. None gives each a new id.
            scores: Known scores of the answers. None computes them.
        """
        answers = list(zip(predictions, ground_truths, question_types, strict=True))
        if scores is None:
            scores = [self.benchmark.score(*answer, self.scorer) for answer in answers]
        ids = [uuid4().hex for _ in answers] if sample_ids is None else list(map(str, sample_ids))
        keys = [int(fingerprint(id.encode(errors="backslashreplace"))[:16], 16) >> 1 for id in ids]
        places = [self.benchmark.question_types.index(kind) for kind in question_types]
        errors = [self.benchmark.degrees_off(*answer, self.scorer) for answer in answers]
        measured = [[score, math.nan if error is None else error] for score, error in zip(scores, errors, strict=True)]
        bits = torch.tensor(measured, dtype=torch.float64).view(torch.int64).tolist()
        rows = [[key, place, *own] for key, place, own in zip(keys, places, bits, strict=True)]
        self.rows.append(torch.tensor(rows, dtype=torch.int64, device=self.device).reshape(-1, 4))

    def add(self, records: Iterable[Mapping[str, Any]]) -> None:
        """Add the scores of records, see `with_scores`. Records without a score do not count."""
        scored = [record for record in records if record["score"] is not None]
        keys = ("prediction", "ground_truth", "question_type", "id", "score")
        self.update(*([record[key] for record in scored] for key in keys))

    def sync(self, *args: Any, **kwargs: Any) -> None:
        """Gather the rows of all ranks."""
        if not len(self.rows):  # torchmetrics would gather an empty state as a float tensor
            self.update([], [], [])
        super().sync(*args, **kwargs)

    def compute(self) -> dict[str, dict[str, Any]]:
        """Return the aggregated scores, see `Benchmark.aggregate`. The order and split of rows have no effect."""
        rows = dim_zero_cat(self.rows).cpu() if len(self.rows) else torch.empty(0, 4, dtype=torch.int64)
        measured = rows[:, 2:].contiguous().view(torch.float64).tolist()
        first: dict[int, tuple[int, float, float]] = {}
        for id, kind, own in zip(rows[:, 0].tolist(), rows[:, 1].tolist(), measured, strict=True):
            first.setdefault(id, (kind, *own))
        scores: dict[str, list[float]] = {}
        degrees: dict[str, list[float]] = {}
        for place, score, error in first.values():
            kind = self.benchmark.question_types[place]
            scores.setdefault(kind, []).append(score)
            if not math.isnan(error):
                degrees.setdefault(kind, []).append(error)
        return self.benchmark.aggregate(scores, self.scorer, degrees)


class VSIBenchScore(BenchmarkScore):
    """Scores of VSI-Bench, see `BenchmarkScore`.

    Args:
        profile: The official scorer: spatial_mllm, thinking_in_space or lmms_eval_0.7.3.
        scorer: Alias of `profile`, which it overrides.
        kwargs: Options of `torchmetrics.Metric`.

    Example:
        >>> metric = VSIBenchScore()
        >>> metric.update(["4", "B"], ["4", "A"], [VSIBench.numeric_types[0], VSIBench.multiple_choice_types[0]])
        >>> metric.compute()["all"]
        {'micro': 0.5, 'macro': 0.5}
    """

    def __init__(self, profile: str = "spatial_mllm", *, scorer: str | None = None, **kwargs: Any) -> None:
        super().__init__(VSIBench(), scorer or profile, **kwargs)
