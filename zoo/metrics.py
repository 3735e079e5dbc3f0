"""Scores of a benchmark's answers: one answer, and a torchmetrics metric of a whole test.

Scorers of VSI-Bench and their rules: `zoo.benchmarks.scorers`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any
from uuid import uuid4

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from zoo.benchmarks import Benchmark, VSIBench


def score_answer(
    prediction: str, ground_truth: str, question_type: str, profile: str = "spatial_mllm", *, scorer: str | None = None
) -> float:
    """Score one answer to a question of VSI-Bench as an official scorer does.

    Args:
        prediction: the model's answer.
        ground_truth: a number, or an option's letter.
        question_type: one of VSI-Bench's.
        profile: the official scorer: spatial_mllm, thinking_in_space or lmms_eval_0.7.3.
        scorer: another name of `profile`, which it replaces.

    Returns:
        A score in 0..1; 0.0 if the answer can't be parsed or the official scorer raises.

    Raises:
        ValueError: the question type or the scorer is unknown.

    Example:
        >>> count = VSIBench.numeric_types[1]
        >>> score_answer("about 4", "4", count)
        0.0
        >>> score_answer("about 4", "4", count, scorer="lmms_eval_0.7.3")
        1.0
    """
    return VSIBench().score(prediction, ground_truth, question_type, scorer or profile)


class BenchmarkScore(Metric):
    """Scores of a benchmark by question type, with micro and macro means.

    Each sample id counts once, by its first row: DistributedSampler repeats samples to fill its last round. Rows
    without an id all count. The state is one int64 tensor (rows, 4), which every backend gathers and no change of
    precision alters: two halves of a 128-bit hash of the id, the index of the question type, the bits of the float64
    score.

    Args:
        benchmark: defines question types, scores and aggregation.
        scorer: one of the benchmark's scorers; None is its default.
        kwargs: options of `torchmetrics.Metric`.

    Raises:
        ValueError: the scorer or a question type is unknown, or lists differ in length.
    """

    full_state_update = False
    higher_is_better = True
    rows: list[Tensor]

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
    ) -> None:
        """Add one row per answer; the lists are parallel."""
        ids = [uuid4().hex for _ in predictions] if sample_ids is None else sample_ids
        scores, fields = [], []
        for sample_id, answer, truth, kind in zip(ids, predictions, ground_truths, question_types, strict=True):
            scores.append(self.benchmark.score(answer, truth, kind, self.scorer))
            fields.append([*_hash(sample_id), self.benchmark.question_types.index(kind)])
        rows = torch.empty(len(scores), 4, dtype=torch.int64)
        rows[:, :3] = torch.tensor(fields, dtype=torch.int64).reshape(-1, 3)
        rows[:, 3] = torch.tensor(scores, dtype=torch.float64).view(torch.int64)
        self.rows.append(rows.to(self.device))

    def sync(self, *args: Any, **kwargs: Any) -> None:
        """Gather the rows of all ranks."""
        # torchmetrics gathers an empty list as a 1-D float tensor, which other ranks' rows don't match
        if not len(self.rows):
            self.rows.append(torch.empty(0, 4, dtype=torch.int64, device=self.device))
        super().sync(*args, **kwargs)

    def compute(self) -> dict[str, dict[str, Any]]:
        """Return the aggregated scores, see `Benchmark.aggregate`. The order and split of the rows have no effect."""
        rows = dim_zero_cat(self.rows).cpu() if len(self.rows) else torch.empty(0, 4, dtype=torch.int64)
        scores = rows[:, 3].contiguous().view(torch.float64).tolist()
        unique: dict[tuple[int, int], tuple[int, float]] = {}
        for (high, low, kind, _), score in zip(rows.tolist(), scores, strict=True):
            unique.setdefault((high, low), (kind, score))
        by_type: dict[str, list[float]] = {kind: [] for kind in self.benchmark.question_types}
        for kind, score in unique.values():
            by_type[self.benchmark.question_types[kind]].append(score)
        return self.benchmark.aggregate(by_type)


class VSIBenchScore(BenchmarkScore):
    """Scores of VSI-Bench, see `BenchmarkScore`.

    Args:
        profile: the official scorer: spatial_mllm, thinking_in_space or lmms_eval_0.7.3.
        scorer: another name of `profile`, which it replaces.
        kwargs: options of `torchmetrics.Metric`.

    Example:
        >>> metric = VSIBenchScore()
        >>> metric.update(["4", "B"], ["4", "A"], [VSIBench.numeric_types[0], VSIBench.multiple_choice_types[0]])
        >>> metric.compute()["all"]
        {'micro': 0.5, 'macro': 0.5}
    """

    def __init__(self, profile: str = "spatial_mllm", *, scorer: str | None = None, **kwargs: Any) -> None:
        super().__init__(VSIBench(), scorer or profile, **kwargs)


def _hash(sample_id: str) -> tuple[int, int]:
    """Return 128 bits of the id as two int64."""
    digest = hashlib.blake2b(str(sample_id).encode(), digest_size=16).digest()
    return int.from_bytes(digest[:8], signed=True), int.from_bytes(digest[8:], signed=True)
