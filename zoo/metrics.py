"""Scores of a benchmark's answers: one answer, and a torchmetrics metric of a whole test.

Scorers of VSI-Bench and their rules: `zoo.benchmarks.scorers`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, NamedTuple
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
        prediction: The model's answer.
        ground_truth: A number, or an option's letter.
        question_type: One of VSI-Bench's.
        profile: The official scorer: spatial_mllm, thinking_in_space or lmms_eval_0.7.3.
        scorer: Another name of `profile`, which it replaces.

    Returns:
        A score in 0..1; 0.0 if the answer can't be parsed or the official scorer raises.

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


class ScoredAnswer(NamedTuple):
    """An answer to a question, its score in 0..1 (None without a ground truth), and what else is kept with it."""

    id: str
    question_type: str
    prediction: str
    ground_truth: str | None
    score: float | None
    note: Any


class BenchmarkScore(Metric):
    """Scores of a benchmark by question type, with micro and macro means.

    Each sample id counts once, by its first row: DistributedSampler repeats samples to fill its last round. Rows
    without an id all count. The state is text, one JSON line per answer, as a uint8 tensor of its bytes: torchmetrics
    gathers it with every backend, no change of precision alters it, and scores keep every bit.

    Args:
        benchmark: Defines question types, scores and aggregation.
        scorer: One of the benchmark's scorers; None is its default.
        kwargs: Options of `torchmetrics.Metric`.

    Raises:
        ValueError: The scorer or a question type is unknown, or lists differ in length.
    """

    full_state_update = False
    higher_is_better = True
    lines: list[Tensor]

    def __init__(self, benchmark: Benchmark, scorer: str | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.benchmark, self.scorer = benchmark, benchmark.find_scorer(scorer)
        self.add_state("lines", default=[], dist_reduce_fx="cat")

    def update(
        self,
        predictions: Sequence[str],
        ground_truths: Sequence[str | None],
        question_types: Sequence[str],
        sample_ids: Sequence[str] | None = None,
        notes: Sequence[Any] | None = None,
    ) -> None:
        """Score answers and add a line for each; the lists are parallel.

        Args:
            predictions: The model's answers.
            ground_truths: The true answers; None for a question that is not scored.
            question_types: The benchmark's type of each question.
            sample_ids: Ids of the questions; None gives each a new one.
            notes: What else to keep with each answer for `answers`, as JSON values.
        """
        ids = [uuid4().hex for _ in predictions] if sample_ids is None else map(str, sample_ids)
        notes = [None] * len(predictions) if notes is None else notes
        text = ""
        for id, answer, truth, kind, note in zip(ids, predictions, ground_truths, question_types, notes, strict=True):
            score = None if truth is None else float(self.benchmark.score(answer, truth, kind, self.scorer))
            text += json.dumps(ScoredAnswer(id, kind, answer, truth, score, note)) + "\n"
        self.lines.append(torch.tensor(list(text.encode()), dtype=torch.uint8, device=self.device))

    def sync(self, *args: Any, **kwargs: Any) -> None:
        """Gather the lines of all ranks."""
        # torchmetrics gathers an empty list as a float tensor, which other ranks' bytes don't match
        if not len(self.lines):
            self.lines.append(torch.empty(0, dtype=torch.uint8, device=self.device))
        super().sync(*args, **kwargs)

    def answers(self) -> dict[str, ScoredAnswer]:
        """Return the answers of all ranks by sample id."""
        with self.sync_context(self.dist_sync_fn):
            return self._unique_answers()

    def compute(self) -> dict[str, dict[str, Any]]:
        """Return the aggregated scores, see `Benchmark.aggregate`. The order and split of the rows have no effect."""
        by_type: dict[str, list[float]] = {}
        for answer in self._unique_answers().values():
            if answer.score is not None:
                by_type.setdefault(answer.question_type, []).append(answer.score)
        return self.benchmark.aggregate(by_type, self.scorer)

    def _unique_answers(self) -> dict[str, ScoredAnswer]:
        content = bytes(dim_zero_cat(self.lines).tolist()) if len(self.lines) else b""
        unique: dict[str, ScoredAnswer] = {}
        for line in content.splitlines():
            answer = ScoredAnswer(*json.loads(line))
            unique.setdefault(answer.id, answer)
        return unique


class VSIBenchScore(BenchmarkScore):
    """Scores of VSI-Bench, see `BenchmarkScore`.

    Args:
        profile: The official scorer: spatial_mllm, thinking_in_space or lmms_eval_0.7.3.
        scorer: Another name of `profile`, which it replaces.
        kwargs: Options of `torchmetrics.Metric`.

    Example:
        >>> metric = VSIBenchScore()
        >>> metric.update(["4", "B"], ["4", "A"], [VSIBench.numeric_types[0], VSIBench.multiple_choice_types[0]])
        >>> metric.compute()["all"]
        {'micro': 0.5, 'macro': 0.5}
    """

    def __init__(self, profile: str = "spatial_mllm", *, scorer: str | None = None, **kwargs: Any) -> None:
        super().__init__(VSIBench(), scorer or profile, **kwargs)
