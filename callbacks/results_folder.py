"""The folder of a test: its run's, or one inside it if the run holds a finished test with other settings."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning import Trainer

from callbacks.settings import FILES, changed
from zoo.files.atomic_io import write_whole
from zoo.files.fingerprint import fingerprint
from zoo.weights.saved_models import CHECKPOINTS, RUN_CONFIG

METRICS, PREDICTIONS = "metrics.json", "predictions.jsonl"
UNFINISHED = "predictions.unfinished.json"  # the settings of a running or interrupted test
SETTINGS = "predictions.settings.json"  # the same file, renamed when the test ends
LOCK = ".test.lock"  # of a running test
PERTURBATION = "data.perturbation"
PREFIX = "test-"  # of a folder inside a run's
COMPUTED = ("questions", "prompts", "geometry_weights", "weights")  # entries of the settings that are no options
KEY_DIGITS, MAX_NAME = 8, 40


def rank_file(folder: Path, rank: int) -> Path:
    """Return the file of one of a test's processes, until the answers of all are joined."""
    return folder / f"predictions.rank{rank}.jsonl"


def rank_files(folder: Path) -> list[Path]:
    """Return the files of a test's processes."""
    return sorted(folder.glob("predictions.rank*.jsonl"))


def results_folder(trainer: Trainer) -> Path:
    """Return the folder that a PredictionsCallback has chosen for the running test, or else the run's."""
    callbacks: Any = trainer.callbacks  # type: ignore[attr-defined]
    chosen = (getattr(callback, "results_folder", None) for callback in callbacks)
    return next(filter(None, chosen), Path(trainer.default_root_dir))


def choose_folder(run: Path, settings: Mapping[str, Any]) -> Path:
    """Return the folder for a test with these settings; a repeated or resumed test gets the folder that it had."""
    is_perturbed = any(name.startswith(PERTURBATION) and value is not None for name, value in settings.items())
    if is_perturbed and (run / CHECKPOINTS).exists():  # never in place of the run's own test
        return run / f"{PREFIX}{_describe({}, settings, PERTURBATION)}-{_key(settings)}"
    if not (run / SETTINGS).exists() and not (run / UNFINISHED).exists():
        return run
    finished = json.loads((run / SETTINGS).read_text(encoding="utf-8")) if (run / SETTINGS).exists() else None
    if finished is not None and not changed(finished, settings):
        return run
    if existing := sorted(run.glob(f"{PREFIX}*{_key(settings)}")):
        return existing[0]
    # without a finished test, the run's folder holds an interrupted one, which is resumed or refuses
    return run if finished is None else run / f"{PREFIX}{_describe(finished, settings)}-{_key(settings)}"


def keep_finished_test(run: Path) -> Path | None:
    """Move a run's finished test, if there is one, to a folder of its own, and return that folder."""
    if not (run / SETTINGS).exists():
        return None
    folder = run / f"{PREFIX}former-weights-{_key(json.loads((run / SETTINGS).read_text(encoding='utf-8')))}"
    folder.mkdir(exist_ok=True)
    if (run / RUN_CONFIG).exists():
        write_whole(folder / RUN_CONFIG, (run / RUN_CONFIG).read_bytes())
    for name in (METRICS, PREDICTIONS, SETTINGS):  # in this order: after a kill, it goes on
        if (run / name).exists():
            (run / name).replace(folder / name)
    return folder


def _key(settings: Mapping[str, Any]) -> str:
    """Return a digest of the settings; the files of scenes may change, as when a damaged one is replaced."""
    return fingerprint({name: value for name, value in settings.items() if not name.startswith(FILES)})[:KEY_DIGITS]


def _describe(before: Mapping[str, Any], now: Mapping[str, Any], first: str = "data.") -> str:
    """Return the first option that differs and its value, such as `subset-20`; those of a prefix come first."""
    names = sorted(changed(before, now), key=lambda name: (name in COMPUTED, not name.startswith(first)))
    option = names[0].removesuffix(".class_path")
    value = "" if names[0] in COMPUTED else f"-{str(now.get(names[0])).rpartition('.')[2]}"
    return re.sub(r"\W+", "-", f"{option.rpartition('.')[2]}{value}")[:MAX_NAME].strip("-")
