"""Scores of prediction records, for the callbacks and the commands."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from lightning import Trainer

from zoo.benchmarks import Benchmark, VSIBench
from zoo.versions import versions

Record = Mapping[str, Any]


def benchmark_of(trainer: Trainer) -> Benchmark:
    """Return the benchmark of the trainer's source; VSI-Bench without a `VideoQADataModule`."""
    source = getattr(getattr(trainer, "datamodule", None), "source", None)
    benchmark: Benchmark = getattr(source, "benchmark", VSIBench())
    return benchmark


def score_record(record: Record, benchmark: Benchmark, scorer: str) -> float | None:
    """Score a record; an error counts as an empty answer. None is free text, or a question without a ground truth."""
    if not (record["ground_truth"] and record["question_type"]):
        return None
    answer = "" if record["error"] else record["prediction"]
    return benchmark.score(answer, record["ground_truth"], record["question_type"], scorer)


@dataclass(frozen=True)
class Tally:
    """The scores of a test.

    Attributes:
        result: as `Benchmark.aggregate` returns it.
        counts: "questions", "failed" and "unparsable".
        failed_scenes: "scene", "error" and "questions" of each error of a scene.
        scores: the score of each id.
        answers: prediction and ground truth of each question.
    """

    benchmark: Benchmark
    scorer: str
    result: dict[str, Any]
    counts: dict[str, int]
    failed_scenes: list[dict[str, Any]]
    scores: dict[str, float]
    answers: Sequence[tuple[str, str]] = ()

    @cached_property
    def corpus(self) -> dict[str, Any]:
        """Measures of the whole test, see `Benchmark.corpus_scores`."""
        return self.benchmark.corpus_scores(*zip(*self.answers, strict=True)) if self.answers else {}

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


def objective_errors(records: Iterable[Record]) -> dict[str, float]:
    """Return the errors of what objectives predict, each the mean over the scenes that have it."""
    by_scene = {record["scene"]: record["objectives"] for record in records if "objectives" in record}
    values: dict[str, list[float]] = {}
    for name, value in (pair for errors in by_scene.values() for pair in errors.items()):
        values.setdefault(name, []).append(value)
    return {name: sum(each) / len(each) for name, each in values.items()}


def tally(records: Iterable[Record], benchmark: Benchmark, scorer: str) -> Tally:
    """Score the records that have a question type and a ground truth; the first record of an id counts."""
    unique: dict[str, Record] = {}
    scores: dict[str, float] = {}
    by_type: dict[str, list[float]] = {}
    failed: Counter[tuple[str, str]] = Counter()
    unparsable = 0
    for record in records:
        score = None if record["id"] in unique else score_record(record, benchmark, scorer)
        if score is None:
            continue
        unique[record["id"]], scores[record["id"]] = record, score
        by_type.setdefault(record["question_type"], []).append(score)
        if record["error"]:
            failed[record["scene"], record["error"]] += 1
        else:
            unparsable += not benchmark.is_parsable(record["prediction"], record["question_type"], scorer)
    return Tally(
        benchmark,
        scorer,
        benchmark.aggregate(by_type),
        {"questions": len(unique), "failed": failed.total(), "unparsable": unparsable},
        [{"scene": s, "error": e, "questions": n} for (s, e), n in sorted(failed.items())],
        scores,
        [("" if record["error"] else record["prediction"], record["ground_truth"]) for record in unique.values()],
    )
