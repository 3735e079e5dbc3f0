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

from callbacks.baselines.blind import constant_baseline
from callbacks.results_folder import METRICS, PREDICTIONS, PREFIX, SETTINGS, rank_files
from callbacks.scoring import tally
from callbacks.settings import CHANGES_NO_ANSWER, CHANGES_NO_RESULT, flatten, is_one_of, unflatten
from callbacks.trained import describe_unfinished
from commands.reports.predictions import Answer, read_predictions
from commands.runs import CONFIG, is_own
from zoo.benchmarks import Benchmark, VSIBench, find_benchmark
from zoo.errors import InputError
from zoo.metrics import ScoredAnswer
from zoo.weights.saved_models import config_of

OF_TRAINING = CHANGES_NO_ANSWER - CHANGES_NO_RESULT  # options that the settings of a test lack
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
        tested: Settings of the test, see `callbacks.settings`; empty if unavailable.
        answers: The answers that `metrics` scores; empty if unavailable.
        scores: The score of each answer by id.
        remarks: Notes about missing or invalid files.
        benchmark: The benchmark of the test.
    """

    name: str
    folder: Path
    config: Mapping[str, Any]
    metrics: Mapping[str, Any]
    tested: Mapping[str, Any]
    answers: Sequence[Answer]
    scores: Mapping[str, float]
    remarks: Sequence[str]
    benchmark: Benchmark

    @cached_property
    def tested_config(self) -> dict[str, Any]:
        """The config with the model and data of the test, whose options may differ from the training's."""
        config = flatten({part: self.config.get(part) for part in ("model", "data")})
        training = {name: each for name, each in config.items() if is_one_of(name, OF_TRAINING)}
        settings = {**training, **self.tested}
        options = unflatten({name: each for name, each in settings.items() if name.startswith(("model.", "data."))})
        return {**self.config, **{name: part for name, part in options.items() if "class_path" in part}}

    @property
    def weights(self) -> str | None:
        """The fingerprint of the tested weights; None if it isn't recorded."""
        return self.tested.get("weights")

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
        records = [ScoredAnswer(a.id, a.question_type, "", a.ground_truth, None, None) for a in self.answers]
        return constant_baseline(records, self.benchmark, scorer).scores


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
    """Load the tests of one benchmark, that of the first, each once: of runs, and of folders of tests inside them.

    Returns:
        The tests in the order of their folders, and the reasons why other folders are skipped.
    """
    unique: dict[Path, Path] = {}
    for folder in (each for given in folders for each in (given, *sorted(given.glob(f"{PREFIX}*/")))):
        unique.setdefault(folder.resolve(), folder)
    runs: list[Run] = []
    skipped: list[str] = []
    for folder in unique.values():
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
    return [run for run in runs if run not in others], skipped


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
    try:
        tested = dict(json.loads((folder / SETTINGS).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        tested = {}
    if unfinished := describe_unfinished(metrics.get("trained")):
        remarks = [*remarks, f"{folder}: {unfinished}"]
    return Run(name, folder, config_of(folder), metrics, tested, answers, scores, remarks, benchmark)


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
    found = tally(map(vars, answers), benchmark, metrics["scorer"])
    if not _same(found.result["per_question_type"], metrics["per_question_type"]):
        remarks.append(f"{path} doesn't match {METRICS}, its answers are left out: score them by python main.py score")
        return (), {}, remarks
    return [answer for answer in answers if answer.id in found.scores], found.scores, remarks


def _same(a: Mapping[str, Any], b: Mapping[str, Any]) -> bool:
    """Return whether two tables of question types have equal counts and, up to rounding, equal scores."""
    return a.keys() == b.keys() and all(
        a[kind]["count"] == b[kind]["count"] and math.isclose(a[kind]["score"], b[kind]["score"], abs_tol=1e-9)
        for kind in a
    )


def _name(folder: Path, all_folders: Sequence[Path]) -> str:
    """Return the shortest end of a folder's path that is unique; with the run of a test inside one."""
    parts = folder.resolve().parts
    for length in range(2 if folder.name.startswith(PREFIX) else 1, len(parts)):
        ends = Counter(other.parts[-length:] for other in all_folders)
        if ends[parts[-length:]] == 1:
            return "/".join(parts[-length:])
    return str(folder)
