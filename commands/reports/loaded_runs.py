"""Settings, scores and answers of runs, for a report."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from callbacks.baselines import constant_baseline
from callbacks.configs import is_own
from callbacks.metrics import describe_unfinished
from callbacks.results_folder import TESTS, finished_tests, rank_files
from callbacks.run_config import METRICS, PREDICTIONS, TEST_FILE
from commands.reports.predictions import Answer, read_predictions
from commands.runs import CONFIG
from datamodules import VideoQADataModule
from zoo.benchmarks import Benchmark, VSIBench, find_benchmark
from zoo.errors import InputError
from zoo.tasks import VideoQATask
from zoo.weights.saved_models import config_of

# options that change no result of a training
CHANGES_NO_RESULT = (
    *VideoQATask.changes_no_training,
    *VideoQADataModule.changes_no_training,
    *("trainer.default_root_dir", "trainer.logger", "trainer.log_every_n_steps", "trainer.profiler"),
    *("trainer.enable_progress_bar", "trainer.enable_model_summary", "trainer.enable_checkpointing"),
    *("trainer.detect_anomaly", "trainer.num_sanity_val_steps", "trainer.barebones", "trainer.inference_mode"),
    *("trainer.limit_test_batches", "trainer.limit_predict_batches", "checkpoint.every_n_train_steps"),
)
AVERAGE = "Avg."  # of the columns of a results table
MEANS = {
    f"{title} {mean}": (group, mean)
    for group, title in (("acc", "Acc."), ("mra", "MRA"), ("all", "All"))
    for mean in ("micro", "macro")
}


@dataclass(frozen=True)
class Run:
    """A run's folder.

    Attributes:
        name: The shortest unique end of the folder's path.
        folder: The folder.
        config: Content of config.yaml.
        metrics: Content of metrics.json; empty before a test.
        weights: The fingerprint of the tested weights; None if it isn't recorded.
        answers: The answers that `metrics` scores; empty if unavailable.
        scores: The score of each answer by id.
        remarks: Notes about missing or invalid files.
        benchmark: The benchmark of the test.
    """

    name: str
    folder: Path
    config: Mapping[str, Any]
    metrics: Mapping[str, Any]
    weights: str | None
    answers: Sequence[Answer]
    scores: Mapping[str, float]
    remarks: Sequence[str]
    benchmark: Benchmark

    @cached_property
    def tested_config(self) -> dict[str, Any]:
        """The config with the model and data of the test, whose options may differ from the training's."""
        tested = self.metrics.get("config") or {}
        parts = {name: each for name, each in tested.items() if isinstance(each, Mapping) and "init_args" in each}
        return {**self.config, **parts}

    def setting(self, *path: str) -> Any:
        """Return the test's value at a path without `init_args`; None if absent."""
        value: Any = self.tested_config
        for key in path:
            value = value if isinstance(value, Mapping) else {}
            parts = value.get("init_args")
            value = {**value, **(parts if isinstance(parts, Mapping) else {})}.get(key)
        return value

    def score(self, measure: str) -> float | None:
        """Return the score of a column, AVERAGE or one of MEANS, in 0..1; None without questions."""
        return _score(self.metrics, measure, self.benchmark.columns.get(measure, ()))

    def blind(self, baseline: str, measure: str) -> float | None:
        """Return the score of a blind baseline; None where it is absent or lacks some of the questions."""
        if baseline not in self.baselines or self.score(measure) is None:
            return None
        tested = self.metrics["per_question_type"]
        kinds = [kind for kind in self.benchmark.columns.get(measure, ()) if kind in tested]
        found = self.baselines[baseline]
        return _score(found, measure, kinds) if found["per_question_type"].keys() >= set(kinds) else None

    @cached_property
    def baselines(self) -> Mapping[str, Mapping[str, Any]]:
        """The blind baselines of the test; of one that recorded none, the best constant of its answers."""
        recorded: Mapping[str, Mapping[str, Any]] | None = self.metrics.get("baselines")
        if recorded is not None or not self.answers:
            return recorded or {}
        scorer = self.metrics["scorer"]
        return constant_baseline([*map(vars, self.answers)], self.benchmark, scorer).scores


def _score(result: Mapping[str, Any], measure: str, kinds: Sequence[str]) -> float | None:
    if measure in (AVERAGE, *MEANS):
        group, mean = MEANS.get(measure, ("all", "macro"))
        score: float | None = result[group][mean]
        return score
    types = result["per_question_type"]
    scores = [types[kind]["score"] for kind in kinds if kind in types]
    return float(np.mean(scores)) if scores else None


def measures(benchmark: Benchmark) -> tuple[str, ...]:
    """Return the titles of a benchmark's columns and of all means."""
    return (*benchmark.columns, *MEANS)


def load_runs(folders: Sequence[Path]) -> tuple[list[Run], list[str]]:
    """Load the tests of one benchmark, that of the first, each once: of runs, and of the tests inside their folders.

    Of equal tests of a run at several steps of its training, the newest step counts.

    Returns:
        The tests in the order of their folders, and the reasons why other folders and tests are left out.
    """
    unique: dict[Path, Path] = {}
    has_tests = set[Path]()
    for given in folders:
        inside = sorted(given.glob(f"{TESTS}/*/"))
        has_tests |= {given.resolve()} if inside else set()
        for folder in (given, *inside):
            unique.setdefault(folder.resolve(), folder)
    runs: list[Run] = []
    skipped: list[str] = []
    for path, folder in unique.items():
        if path in has_tests and not any((folder / name).exists() for name in (METRICS, TEST_FILE)):
            continue  # all of its tests have folders of their own
        try:
            run = load_run(folder, _name(folder, list(unique)))
        except InputError as error:
            skipped.append(str(error))
            continue
        if run.metrics:
            runs.append(run)
        else:
            skipped += run.remarks
    benchmark = next((run.benchmark for run in runs), VSIBench())
    others = [run for run in runs if run.benchmark.name != benchmark.name]
    skipped += [
        f"{run.folder} was tested on {run.benchmark.name}, not {benchmark.name}: report it separately" for run in others
    ]
    runs, older = newest_steps([run for run in runs if run not in others])
    return runs, skipped + older


def newest_steps(runs: Sequence[Run]) -> tuple[list[Run], list[str]]:
    """Return the tests without those that are of an earlier step than an equal test of their run; and remarks."""
    equal: dict[str, list[Run]] = {}
    for place, run in enumerate(runs):
        names = ("config", "scorer", "question_ids")
        of_run = [str(root_of(run.folder)), *(run.metrics.get(name) for name in names)]
        key = json.dumps(of_run, sort_keys=True) if run.metrics.get("step") is not None else str(place)
        equal.setdefault(key, []).append(run)
    older, remarks = list[Run](), list[str]()
    for each in equal.values():
        newest = max(run.metrics.get("step") or 0 for run in each)
        if left := [run for run in each if (run.metrics.get("step") or 0) < newest]:
            older += left
            steps = ", ".join(sorted({str(run.metrics["step"]) for run in left}, key=int))
            remarks.append(f"{root_of(each[0].folder)}: its tests of step {newest}; those of step {steps} are left out")
    return [run for run in runs if not any(run is each for each in older)], remarks


def root_of(folder: Path) -> Path:
    """Return the run that a test's folder belongs to."""
    return folder.parent.parent if folder.parent.name == TESTS else folder


def newest_test(folder: Path) -> Path | None:
    """Return the folder of the newest finished test of a run, its own or one inside it; None without one."""
    return max(finished_tests(folder), key=lambda path: (path / METRICS).stat().st_mtime, default=None)


def load_run(folder: Path, name: str) -> Run:
    """Load a run from its folder.

    Raises:
        InputError: The folder is not a run, or its config can't be read.
    """
    if not (folder / CONFIG).is_file():
        raise InputError(f"{folder} is not the folder of a run: it has no {CONFIG}")
    metrics: dict[str, Any] = {}
    benchmark: Benchmark = VSIBench()
    answers: Sequence[Answer] = ()
    scores: Mapping[str, float] = {}
    try:
        if (folder / METRICS).exists():
            metrics = _read_metrics(folder / METRICS)
            benchmark = find_benchmark(metrics.get("benchmark", benchmark.name), trusted=is_own(folder))
        answers, scores, remarks = _answers(folder, metrics, benchmark)
    except InputError as error:
        remarks = [str(error)]
    weights: str | None
    try:
        weights = json.loads((folder / TEST_FILE).read_text(encoding="utf-8"))["weights"]
    except (OSError, ValueError, LookupError, TypeError):
        weights = None
    if unfinished := describe_unfinished(metrics):
        remarks = [*remarks, f"{folder}: {unfinished}"]
    return Run(name, folder, config_of(folder), metrics, weights, answers, scores, remarks, benchmark)


def _read_metrics(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path} can't be read: {error}") from error
    if not isinstance(content, dict) or not {"per_question_type", "scorer", *VSIBench().groups} <= content.keys():
        raise InputError(f"{path} lacks entries of a test: test the run again")
    return content


def _answers(
    folder: Path, metrics: Mapping[str, Any], benchmark: Benchmark
) -> tuple[Sequence[Answer], Mapping[str, float], list[str]]:
    """Return the answers that metrics.json scores, their scores, and remarks."""
    path = folder / PREDICTIONS
    if not path.exists() or not path.stat().st_size:
        if metrics:
            return (), {}, [f"{folder} has no {PREDICTIONS}: its questions can't be shown or compared"]
        began = path.exists() or bool(rank_files(folder))
        return (), {}, [f"{folder}: {'its test was interrupted' if began else 'no test yet'}"]
    answers, dropped = read_predictions(path, benchmark)
    remarks = [f"{path}: {remark}" for remark in dropped]
    if not metrics:
        remarks.append(f"{folder}: its test was interrupted after {len(answers)} answers (python main.py score {path})")
        return (), {}, remarks
    scored = [each for each in answers if each.score is not None and each.scorer == metrics["scorer"]]
    by_type: dict[str, list[float]] = {}
    for answer in scored:
        by_type.setdefault(answer.question_type, []).append(answer.score or 0.0)
    found = benchmark.aggregate(by_type, metrics["scorer"])
    if not _same(found["per_question_type"], metrics["per_question_type"]):
        remarks.append(f"{path} doesn't match {METRICS}, its answers are left out: score them by python main.py score")
        return (), {}, remarks
    return scored, {answer.id: answer.score or 0.0 for answer in scored}, remarks


def _same(a: Mapping[str, Any], b: Mapping[str, Any]) -> bool:
    """Return whether two tables of question types have equal counts and, up to rounding, equal scores."""
    return a.keys() == b.keys() and all(
        a[kind]["count"] == b[kind]["count"] and math.isclose(a[kind]["score"], b[kind]["score"], abs_tol=1e-9)
        for kind in a
    )


def _name(folder: Path, all_folders: Sequence[Path]) -> str:
    """Return the shortest end of a folder's path that is unique; of a test inside a run, `<run>/<test>`."""

    def parts_of(path: Path) -> tuple[str, ...]:
        parts = path.resolve().parts
        return (*parts[:-2], parts[-1]) if path.parent.name == TESTS else parts

    parts = parts_of(folder)
    for length in range(2 if folder.parent.name == TESTS else 1, len(parts)):
        ends = Counter(parts_of(other)[-length:] for other in all_folders)
        if ends[parts[-length:]] == 1:
            return "/".join(parts[-length:])
    return str(folder)
