"""Scores of prediction records, for the callbacks and the commands."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from lightning import Trainer

from zoo.benchmarks import Benchmark, VSIBench
from zoo.metrics import BenchmarkScore, ScoredAnswer
from zoo.versions import versions

Record = Mapping[str, Any]


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
        records: The answers to all questions, also to those that are not scored; the note of each is what `add_records`
            keeps of its record.
    """

    benchmark: Benchmark
    scorer: str
    result: dict[str, Any]
    records: Sequence[ScoredAnswer]

    @cached_property
    def scores(self) -> dict[str, float]:
        """The score of each id."""
        return {record.id: record.score for record in self.records if record.score is not None}

    @cached_property
    def scored(self) -> list[ScoredAnswer]:
        """The records that have a score."""
        return [record for record in self.records if record.score is not None]

    @cached_property
    def counts(self) -> dict[str, int]:
        """Numbers of scored questions: "questions" in all, "failed" and "unparsable"."""
        answered = [record for record in self.scored if not record.note["error"]]
        unparsable = sum(
            not self.benchmark.is_parsable(record.prediction, record.question_type, self.scorer) for record in answered
        )
        questions = len(self.scored)
        return {"questions": questions, "failed": questions - len(answered), "unparsable": unparsable}

    @property
    def failed_scenes(self) -> list[dict[str, Any]]:
        """Scene, error and number of scored questions of each error of a scene."""
        notes = (record.note for record in self.scored)
        failed = Counter((note["scene"], note["error"]) for note in notes if note["error"])
        return [{"scene": s, "error": e, "questions": n} for (s, e), n in sorted(failed.items())]

    @cached_property
    def objectives(self) -> dict[str, float]:
        """Errors of what objectives predict, each the mean over the scenes that have it."""
        notes = [record.note for record in self.records]
        by_scene = {note["scene"]: note["objectives"] for note in notes if "objectives" in note}
        values: dict[str, list[float]] = {}
        for name, value in (pair for errors in by_scene.values() for pair in errors.items()):
            values.setdefault(name, []).append(value)
        return {name: sum(each) / len(each) for name, each in values.items()}

    @property
    def unmeasured_scenes(self) -> list[dict[str, str]]:
        """Scene and reason of each scene that was answered, but whose depth objectives could not be measured by."""
        notes = (record.note for record in self.records)
        found = sorted({(note["scene"], note["unmeasured"]) for note in notes if note.get("unmeasured")})
        return [{"scene": scene, "error": error} for scene, error in found]

    @cached_property
    def corpus(self) -> dict[str, Any]:
        """Measures of the whole test, see `Benchmark.corpus_scores`."""
        texts = [(record.prediction, record.ground_truth) for record in self.scored]
        return self.benchmark.corpus_scores(*zip(*texts, strict=True)) if texts else {}

    def as_metrics(self, **more: Any) -> dict[str, Any]:
        """Return the content of metrics.json with further entries."""
        return {
            **self.result,
            "counts": self.counts,
            "failed_scenes": self.failed_scenes,
            **({"unmeasured_scenes": self.unmeasured_scenes} if self.unmeasured_scenes else {}),
            "benchmark": self.benchmark.name,
            "scorer": self.scorer,
            **({"captions": self.corpus} if self.corpus else {}),
            **more,
            "versions": versions(),
        }


def add_records(metric: BenchmarkScore, records: Iterable[Record]) -> None:
    """Score prediction records by a metric, which keeps scenes, errors, and what objectives measure as notes."""
    records = list(records)
    kept = ("scene", "error", "objectives", "unmeasured")
    metric.update(
        [_answer(record) for record in records],
        [record["ground_truth"] if _is_scored(record) else None for record in records],
        [record["question_type"] for record in records],
        [record["id"] for record in records],
        [{key: record[key] for key in kept if key in record} for record in records],
    )


def tally_of(metric: BenchmarkScore) -> Tally:
    """Return the scores of the records that were added to a metric, those of all processes."""
    return Tally(metric.benchmark, metric.scorer, metric.compute(), list(metric.answers().values()))


def tally(records: Iterable[Record], benchmark: Benchmark, scorer: str | None = None) -> Tally:
    """Score the records of a whole test in one process."""
    metric = BenchmarkScore(benchmark, scorer)
    add_records(metric, records)
    return tally_of(metric)
