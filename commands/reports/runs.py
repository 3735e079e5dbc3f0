"""Settings, scores and answers of runs, for a report."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from callbacks.metrics import METRICS
from callbacks.predictions import PREDICTIONS, SETTINGS
from callbacks.scoring import tally
from commands.reports.predictions import Answer, read_predictions
from commands.runs import CONFIG, config_of
from zoo.benchmarks import Benchmark, VSIBench, find_benchmark
from zoo.errors import InputError


@dataclass(frozen=True)
class Run:
    """A run's folder.

    Attributes:
        name: the shortest unique end of the folder's path.
        folder: the folder.
        config: content of config.yaml.
        metrics: content of metrics.json; None before a test.
        answers: the answers that `metrics` scores; empty if unavailable.
        scores: the score of each answer by id.
        remarks: notes about missing or invalid files.
        weights: fingerprint of the tested weights.
        benchmark: the benchmark of the test.
    """

    name: str
    folder: Path
    config: Mapping[str, Any]
    metrics: Mapping[str, Any] | None
    answers: tuple[Answer, ...]
    scores: Mapping[str, float]
    remarks: tuple[str, ...]
    weights: str = ""
    benchmark: Benchmark = VSIBench()

    def setting(self, *path: str) -> Any:
        """Return the config's value at a path without `init_args`; None if absent."""
        value: Any = self.config
        for key in path:
            value = {**value, **(value.get("init_args") or {})} if isinstance(value, Mapping) else {}
            value = value.get(key)
        return value


def load_runs(folders: Sequence[Path]) -> tuple[list[Run], list[str]]:
    """Load the runs of one benchmark, that of the first tested run, each once.

    Returns:
        The runs in the order of their folders, and the reasons why other folders are skipped.
    """
    unique = {folder.resolve(): folder for folder in reversed(folders)}
    runs, skipped = [], []
    for folder in reversed(list(unique.values())):
        try:
            runs.append(load_run(folder, _name(folder, list(unique))))
        except InputError as error:
            skipped.append(str(error))
    tested = next((run.benchmark for run in runs if run.metrics), VSIBench()).name
    others = [run for run in runs if run.metrics and run.benchmark.name != tested]
    skipped += [
        f"{run.folder} was tested on {run.benchmark.name}, not {tested}: report it separately" for run in others
    ]
    return [replace(run, benchmark=find_benchmark(tested)) for run in runs if run not in others], skipped


def load_run(folder: Path, name: str) -> Run:
    """Load a run from its folder.

    Raises:
        InputError: the folder is not a run, or its config can't be read.
    """
    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder" if folder.exists() else f"{folder} does not exist")
    if not (folder / CONFIG).is_file():
        raise InputError(f"{folder} is not a run: it has no {CONFIG}")
    config = config_of(folder)
    metrics, benchmark = None, Run.benchmark
    found: tuple[tuple[Answer, ...], Mapping[str, float], list[str]]
    try:
        if metrics := _metrics(folder / METRICS):
            benchmark = find_benchmark(metrics.get("benchmark", benchmark.name))
        found = _answers(folder, metrics, benchmark)
    except InputError as error:
        found = (), {}, [str(error)]
    answers, scores, remarks = found
    return Run(name, folder, config, metrics, answers, scores, tuple(remarks), _weights(folder), benchmark)


def _weights(folder: Path) -> str:
    """Return the fingerprint in the settings of a finished test."""
    try:
        return str(json.loads((folder / SETTINGS).read_text(encoding="utf-8"))["weights"])
    except (OSError, ValueError, LookupError):
        return ""


def _metrics(path: Path) -> dict[str, Any] | None:
    """Read metrics.json, if it exists."""
    if not path.exists():
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path} can't be read: {error}") from error
    if not isinstance(content, dict) or not {"per_question_type", "scorer", *VSIBench().groups} <= content.keys():
        raise InputError(f"{path} lacks entries of a test: test the run again")
    return content


def _answers(
    folder: Path, metrics: Mapping[str, Any] | None, benchmark: Benchmark
) -> tuple[tuple[Answer, ...], Mapping[str, float], list[str]]:
    """Return the answers that metrics.json scores, their scores, and remarks."""
    path = folder / PREDICTIONS
    if not path.exists() or not path.stat().st_size:
        if metrics is None:
            began = path.exists() or any(folder.glob("predictions.rank*.jsonl"))
            return (), {}, [f"{folder}: {'its test was interrupted' if began else 'no test yet'}"]
        return (), {}, [f"{folder} has no {PREDICTIONS}: its questions can't be shown or compared"]
    predictions = read_predictions(path, benchmark)
    remarks = [f"{path}: {remark}" for remark in predictions.remarks]
    if metrics is None:
        count = len(predictions.answers)
        remarks.append(f"{folder}: its test was interrupted after {count} answers (python main.py score {path})")
        return (), {}, remarks
    found = tally(map(vars, predictions.answers), benchmark, metrics["scorer"])
    if not _same(found.result["per_question_type"], metrics["per_question_type"]):
        remarks.append(f"{path} doesn't match {METRICS}, its answers are left out: score them by python main.py score")
        return (), {}, remarks
    return tuple(answer for answer in predictions.answers if answer.id in found.scores), found.scores, remarks


def _same(a: Mapping[str, Any], b: Mapping[str, Any]) -> bool:
    """Return whether two tables of question types have equal counts and, up to rounding, equal scores."""
    return a.keys() == b.keys() and all(
        a[kind]["count"] == b[kind]["count"] and math.isclose(a[kind]["score"], b[kind]["score"], abs_tol=1e-9)
        for kind in a
    )


def _name(folder: Path, all_folders: Sequence[Path]) -> str:
    """Return the shortest end of a folder's path that is unique."""
    parts = folder.resolve().parts
    for length in range(1, len(parts)):
        ends = Counter(other.parts[-length:] for other in all_folders)
        if ends[parts[-length:]] == 1:
            return "/".join(parts[-length:])
    return str(folder)


def spell(part: Any) -> str:
    """Return a short text for a part of a config, such as `PRoPE(ChannelRange(0.0, 0.5), first)`; "" for null."""
    if isinstance(part, Mapping):
        if "class_path" not in part:
            return ", ".join(f"{key} {spell(value)}" for key, value in part.items() if value is not None)
        arguments = [spell(value) for value in (part.get("init_args") or {}).values() if value is not None]
        name = str(part["class_path"]).rpartition(".")[2]
        return f"{name}({', '.join(arguments)})" if arguments else name
    if isinstance(part, list):
        return f"[{', '.join(map(spell, part))}]"
    return "" if part is None else str(part)
