"""What a report knows of a run: its settings, its scores, and its answers, as far as they are there."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from callbacks.predictions import SETTINGS
from commands.reports.columns import GROUPS
from commands.reports.predictions import Answer, read_predictions
from commands.reports.scoring import tally
from commands.runs import CONFIG, config_of
from zoo.errors import InputError

METRICS, PREDICTIONS = "metrics.json", "predictions.jsonl"


@dataclass(frozen=True)
class Run:
    """A run's folder.

    `metrics` is None before a test; `answers` are those that `metrics` scores, with their `scores` by id, and empty
    where they are not there. `remarks` say what is amiss.
    """

    name: str  # short, and its own among the runs of a report
    folder: Path
    config: Mapping[str, Any]
    metrics: Mapping[str, Any] | None
    answers: tuple[Answer, ...]
    scores: Mapping[str, float]
    remarks: tuple[str, ...]
    weights: str = ""  # the fingerprint of those that were tested

    def setting(self, *path: str) -> Any:
        """What stands in the config at a path that leaves `init_args` out; None where nothing does."""
        value: Any = self.config
        for key in path:
            value = {**value, **(value.get("init_args") or {})} if isinstance(value, Mapping) else {}
            value = value.get(key)
        return value


def load_runs(folders: Sequence[Path]) -> tuple[list[Run], list[str]]:
    """The runs among some folders in their order, each once; and why the others are none."""
    unique = {folder.resolve(): folder for folder in reversed(folders)}
    runs, skipped = [], []
    for folder in reversed(list(unique.values())):
        try:
            runs.append(load_run(folder, _name(folder, list(unique))))
        except InputError as error:
            skipped.append(str(error))
    return runs, skipped


def load_run(folder: Path, name: str) -> Run:
    """A run from its folder.

    Raises:
        InputError: it is none, or its config can't be read.
    """
    if not folder.is_dir():
        raise InputError(f"{folder} is no folder" if folder.exists() else f"{folder} does not exist")
    if not (folder / CONFIG).is_file():
        raise InputError(f"{folder} is no run: it has no {CONFIG}")
    config = config_of(folder)
    metrics, remarks = None, []
    try:
        metrics = _metrics(folder / METRICS)
        answers, scores, said = _answers(folder, metrics)
        remarks += said
    except InputError as error:
        answers, scores = (), {}
        remarks.append(str(error))
    return Run(name, folder, config, metrics, answers, scores, tuple(remarks), _weights(folder))


def _weights(folder: Path) -> str:
    """The fingerprint that a finished test leaves beside its answers."""
    try:
        return str(json.loads((folder / SETTINGS).read_text(encoding="utf-8"))["weights"])
    except (OSError, ValueError, LookupError):
        return ""


def _metrics(path: Path) -> dict[str, Any] | None:
    """metrics.json, if there is one."""
    if not path.exists():
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path} can't be read: {error}") from error
    if not isinstance(content, dict) or not {"per_question_type", "scorer", *GROUPS} <= content.keys():
        raise InputError(f"{path} is not what a test writes: test the run again")
    return content


def _answers(
    folder: Path, metrics: Mapping[str, Any] | None
) -> tuple[tuple[Answer, ...], Mapping[str, float], list[str]]:
    """(the answers that metrics.json scores, their scores, what is to be said of them)."""
    path = folder / PREDICTIONS
    if not path.exists() or not path.stat().st_size:
        if metrics is None:
            began = path.exists() or any(folder.glob("predictions.rank*.jsonl"))
            return (), {}, [f"{folder}: {'its test was broken off' if began else 'no test yet'}"]
        return (), {}, [f"{folder} has no {PREDICTIONS}: its questions can't be shown or compared"]
    predictions = read_predictions(path)
    remarks = [f"{path}: {remark}" for remark in predictions.remarks]
    if metrics is None:
        count = len(predictions.answers)
        remarks.append(f"{folder}: its test was broken off after {count} answers (python main.py score {path})")
        return (), {}, remarks
    found = tally(predictions.answers, metrics["scorer"])
    if not _same(found.result["per_question_type"], metrics["per_question_type"]):
        remarks.append(
            f"{path} isn't what {METRICS} scores (another test was broken off?): its questions are left out; python "
            f"main.py score {path} says what they score"
        )
        return (), {}, remarks
    return tuple(answer for answer in predictions.answers if answer.ground_truth), found.scores, remarks


def _same(a: Mapping[str, Any], b: Mapping[str, Any]) -> bool:
    """Whether two tables of question types hold the same scores, but for rounding, of as many questions."""
    return a.keys() == b.keys() and all(
        a[kind]["count"] == b[kind]["count"] and math.isclose(a[kind]["score"], b[kind]["score"], abs_tol=1e-9)
        for kind in a
    )


def _name(folder: Path, all_folders: Sequence[Path]) -> str:
    """The end of a folder's path that no other folder ends in."""
    parts = folder.resolve().parts
    for length in range(1, len(parts)):
        ends = Counter(other.parts[-length:] for other in all_folders)
        if ends[parts[-length:]] == 1:
            return "/".join(parts[-length:])
    return str(folder)


def spell(part: Any) -> str:
    """A part of a config in a word or two, such as `PRoPE(ChannelRange(0.0, 0.5), first)`; "" for null."""
    if isinstance(part, Mapping):
        if "class_path" not in part:
            return ", ".join(f"{key} {spell(value)}" for key, value in part.items() if value is not None)
        arguments = [spell(value) for value in (part.get("init_args") or {}).values() if value is not None]
        name = str(part["class_path"]).rpartition(".")[2]
        return f"{name}({', '.join(arguments)})" if arguments else name
    if isinstance(part, list):
        return f"[{', '.join(map(spell, part))}]"
    return "" if part is None else str(part)
