"""Scores of prediction records, for the callbacks and the commands."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from lightning import Trainer

from zoo.benchmarks import Benchmark, VSIBench
from zoo.metrics import BenchmarkScore, ScoredAnswer
from zoo.versions import versions

Record = Mapping[str, Any]
Failure = tuple[str, str]  # the scene and its error


def benchmark_of(trainer: Trainer) -> Benchmark:
    """Return the benchmark of the trainer's source; VSI-Bench without a `VideoQADataModule`."""
    source = getattr(getattr(trainer, "datamodule", None), "source", None)
    benchmark: Benchmark = getattr(source, "benchmark", VSIBench())
    return benchmark


def score_record(record: Record, benchmark: Benchmark, scorer: str) -> float | None:
    """Score a record; None for one that is not scored."""
    if not _is_scored(record):
        return None
    return benchmark.score(_answer(record), record["ground_truth"], record["question_type"], scorer)


def _is_scored(record: Record) -> bool:
    """Return whether it is no free text, which has no question type, and has a ground truth."""
    return bool(record["ground_truth"] and record["question_type"])


def _answer(record: Record) -> str:
    """Return the answer to score; an error counts as an empty one."""
    return "" if record["error"] else record["prediction"]


@dataclass(frozen=True)
class Tally:
    """The scores of a test.

    Attributes:
        benchmark: Benchmark of the questions.
        scorer: Name of its scorer.
        result: Means, as `Benchmark.aggregate` returns them.
        answers: The scored answers by id.
        failures: Scene and error of each failed question by id, also of those that are not scored.
        num_records: Number of questions, also of those that are not scored.
        objectives: Errors of what objectives predict, each the mean over the scenes that have it.
    """

    benchmark: Benchmark
    scorer: str
    result: dict[str, Any]
    answers: Mapping[str, ScoredAnswer]
    failures: Mapping[str, Failure]
    num_records: int
    objectives: Mapping[str, float]

    @property
    def scores(self) -> dict[str, float]:
        """The score of each id."""
        return {id: answer.score for id, answer in self.answers.items()}

    @cached_property
    def counts(self) -> dict[str, int]:
        """Numbers of scored questions: "questions" in all, "failed" and "unparsable"."""
        answered = [answer for id, answer in self.answers.items() if id not in self.failures]
        unparsable = [
            answer
            for answer in answered
            if not self.benchmark.is_parsable(answer.prediction, answer.question_type, self.scorer)
        ]
        failed = len(self.answers) - len(answered)
        return {"questions": len(self.answers), "failed": failed, "unparsable": len(unparsable)}

    @property
    def failed_scenes(self) -> list[dict[str, Any]]:
        """Scene, error and number of scored questions of each error of a scene."""
        failed = Counter(self.failures[id] for id in self.answers if id in self.failures)
        return [{"scene": s, "error": e, "questions": n} for (s, e), n in sorted(failed.items())]

    @cached_property
    def corpus(self) -> dict[str, Any]:
        """Measures of the whole test, see `Benchmark.corpus_scores`."""
        texts = [(answer.prediction, answer.ground_truth) for answer in self.answers.values()]
        return self.benchmark.corpus_scores(*zip(*texts, strict=True)) if texts else {}

    def as_metrics(self, **more: Any) -> dict[str, Any]:
        """Return the content of metrics.json with further entries."""
        return {
            **self.result,
            "counts": self.counts,
            "failed_scenes": self.failed_scenes,
            "benchmark": self.benchmark.name,
            "scorer": self.scorer,
            **({"captions": self.corpus} if self.corpus else {}),
            **more,
            "versions": versions(),
        }


class RecordScores:
    """Accumulates the prediction records of a test: scores in a torchmetrics metric, and what is not a metric beside.

    Args:
        benchmark: Benchmark of the questions.
        scorer: One of its scorers; None is its first.
        device: Device of the metric's state, from which the backend of several processes gathers it.
    """

    def __init__(self, benchmark: Benchmark, scorer: str | None = None, device: torch.device | str = "cpu") -> None:
        self.metric = BenchmarkScore(benchmark, scorer).to(device)
        self._failures: dict[str, Failure | None] = {}
        self._objectives: dict[str, Mapping[str, float]] = {}

    def update(self, records: Iterable[Record]) -> None:
        """Score records that have a question type and a ground truth; the first record of an id counts."""
        records = list(records)
        scored = [record for record in records if _is_scored(record)]
        truths, kinds, ids = ([record[key] for record in scored] for key in ("ground_truth", "question_type", "id"))
        self.metric.update([_answer(record) for record in scored], truths, kinds, ids)
        for record in records:
            self._failures.setdefault(record["id"], (record["scene"], record["error"]) if record["error"] else None)
            if "objectives" in record:
                self._objectives[record["scene"]] = record["objectives"]

    def compute(self) -> Tally:
        """Return the scores of the records of all processes."""
        failures: dict[str, Failure | None] = {}
        objectives: dict[str, Mapping[str, float]] = {}
        for own_failures, own_objectives in _gather((self._failures, self._objectives)):
            for id, failure in own_failures.items():
                failures.setdefault(id, failure)  # the first counts, as in the metric
            objectives |= own_objectives
        return Tally(
            benchmark=self.metric.benchmark,
            scorer=self.metric.scorer,
            result=self.metric.compute(),
            answers=self.metric.answers(),
            failures={id: failure for id, failure in failures.items() if failure is not None},
            num_records=len(failures),
            objectives=_means(objectives.values()),
        )


def tally(records: Iterable[Record], benchmark: Benchmark, scorer: str | None = None) -> Tally:
    """Score the records of a whole test in one process."""
    scores = RecordScores(benchmark, scorer)
    scores.update(records)
    return scores.compute()


def _means(measured: Iterable[Mapping[str, float]]) -> dict[str, float]:
    """Return the mean of each name over the mappings that have it."""
    values: dict[str, list[float]] = {}
    for name, value in (pair for errors in measured for pair in errors.items()):
        values.setdefault(name, []).append(value)
    return {name: sum(each) / len(each) for name, each in values.items()}


def _gather(local: Any) -> list[Any]:
    """Return the objects of all ranks."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return [local]
    everyone: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(everyone, local)
    return everyone
