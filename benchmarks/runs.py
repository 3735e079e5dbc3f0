"""Trainings of a benchmark, each `main.py fit` and `main.py test` as a user would call them, and none made twice.

What they scored is kept in one small file a benchmark, `benchmarks/results/<name>.jsonl`, a line a test, which is
committed: a fresh clone goes on from there. A result is found again by the words of its commands, so that one with
other settings is another result.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock
from typing import Any

from callbacks.results_folder import SETTINGS
from datamodules.sources.rooms.rendered import cores

QUESTION = "room_size_estimation"
VGGT = Path("runs/vggt_tiny/model.safetensors")


@dataclass(frozen=True)
class Run:
    """One training, and what it is tested on.

    Attributes:
        name: of its folder.
        fit: what follows `main.py fit`, the seed included, see `seeded`.
        tests: what follows `main.py test` on the trained model, by a name; "" is the run's own test.
    """

    name: str
    fit: tuple[str, ...]
    tests: Mapping[str, tuple[str, ...]] = field(default_factory=lambda: {"": ()})


class Results:
    """The lines of a file of results: `find` what is there, `add` what was made."""

    def __init__(self, path: Path) -> None:
        self.path, self.lock = path, Lock()
        lines = path.read_text().splitlines() if path.exists() else []
        self.lines: list[dict[str, Any]] = [json.loads(line) for line in lines]

    def find(self, run: Run, test: str = "") -> dict[str, Any] | None:
        """The newest result of these very commands: `fit_s` in seconds, `scores` by type of question and `macro`."""
        words = _words(run, test)
        return next((line for line in reversed(self.lines) if words.items() <= line.items()), None)

    def add(self, run: Run, test: str, fit_s: float, metrics: Mapping[str, Any]) -> None:
        kinds = metrics["per_question_type"].items()
        scores = {kind: round(entry["score"], 5) for kind, entry in kinds if entry["count"]}
        scores["macro"] = round(metrics["all"]["macro"], 5)
        line = {"run": run.name, **_words(run, test), "fit_s": round(fit_s, 1), "scores": scores}
        with self.lock:
            self.lines.append(line)
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a") as file:
                file.write(json.dumps(line) + "\n")

    def scores(self, runs: Iterable[Run], test: str = "", kind: str = QUESTION) -> list[float]:
        """The scores of those of the runs that are done."""
        found = (self.find(run, test) for run in runs)
        return [result["scores"][kind] for result in found if result is not None]


def parser(description: str | None, name: str) -> argparse.ArgumentParser:
    """The options that all have, see `parse`."""
    made = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    made.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    made.add_argument("--jobs", type=int, default=2, help="runs at a time; they share the cores")
    made.add_argument("--out", type=Path, default=Path("runs/benchmarks") / name, help="folder of the runs")
    made.add_argument("--results", type=Path, default=Path(f"benchmarks/results/{name}.jsonl"))
    return made


def parse(made: argparse.ArgumentParser) -> tuple[argparse.Namespace, tuple[str, ...]]:
    """(options, what is left over and meant for `main.py fit`, in words `--option=value`)."""
    asked, left = made.parse_known_args()
    words: list[str] = []
    for word in left:
        if word.startswith("--") or not words:
            words.append(word)
        else:
            words[-1] += f"={word}"
    return asked, tuple(words)


def seeded(seed: int) -> tuple[str, ...]:
    """The options that give a training another seed; the first alone would do, but results are found by all three."""
    return tuple(f"--{option}={seed}" for option in ("seed_everything", "model.backbone.seed", "data.seed"))


def to_do(runs: Sequence[Run], results: Results) -> list[Run]:
    """Those that lack a result, in the same order."""
    return [run for run in runs if any(results.find(run, test) is None for test in run.tests)]


def make(runs: Sequence[Run], results: Results, out: Path, jobs: int) -> None:
    """Trains and tests what has no result yet, in this order; a line each as it is done.

    A run that fails is named with the last line that it said, and the rest goes on.

    Raises:
        SystemExit: some have failed.
    """
    todo = to_do(runs, results)
    print(f"{len(todo)} of {len(runs)} runs to make, {jobs} at a time; see {out}/", flush=True)
    threads = max(1, cores() // jobs)
    failed = 0
    with ThreadPoolExecutor(jobs) as pool:
        for error, said in pool.map(lambda run: _try(run, results, out / run.name, threads), todo):
            print(said, flush=True)
            failed += error
    if failed:
        sys.exit(f"{failed} of {len(todo)} runs have failed, see above; the same command tries them again")


def pretrain_vggt(out: Path = VGGT.parent) -> None:
    """Makes the tiny VGGT that the fused models load, in some ten minutes, unless it is there."""
    if not VGGT.exists():
        main_py(out / "log.txt", cores(), "fit", "--config", "geometry_tiny.yaml")


def main_py(log: Path, threads: int, *words: str) -> None:
    """`python main.py`; what it says goes to a file. Raises subprocess.CalledProcessError where it fails."""
    log.parent.mkdir(parents=True, exist_ok=True)
    environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
    with log.open("a") as file:
        file.write(f"main.py {' '.join(words)}\n")
        file.flush()
        subprocess.run([sys.executable, "main.py", *words], check=True, stdout=file, stderr=file, env=environment)


def spread(scores: Sequence[float], seeds: int) -> str:
    """The mean over the seeds with the least and the greatest, as a cell of a table; says so if some are to come."""
    if not scores:
        return ""
    to_come = "" if len(scores) == seeds else f", {len(scores)} of {seeds} seeds"
    return f"{statistics.mean(scores):.3f} ({min(scores):.3f} to {max(scores):.3f}{to_come})"


def _words(run: Run, test: str) -> dict[str, str]:
    return {"fit": " ".join(run.fit), "test": " ".join(run.tests[test])}


def _try(run: Run, results: Results, folder: Path, threads: int) -> tuple[bool, str]:
    """(whether it failed, a line on it)."""
    started = time.monotonic()
    try:
        _make(run, results, folder, threads)
    except subprocess.CalledProcessError:
        log = folder / "log.txt"
        return True, f"{run.name} failed: {log.read_text().splitlines()[-1]} (all of it in {log})"
    results_s = time.monotonic() - started
    scores = [f"{test} {found['scores']['macro']:.3f}" for test in run.tests if (found := results.find(run, test))]
    return False, f"{run.name}: {', '.join(scores).strip()} ({results_s:.0f} s)"


def _make(run: Run, results: Results, folder: Path, threads: int) -> None:
    """Trains, unless the folder holds the finished training of these words, and makes the tests that are absent."""
    fitted, checkpoint, log = folder / "fitted.json", folder / "checkpoints/last.ckpt", folder / "log.txt"
    done = json.loads(fitted.read_text()) if fitted.exists() and checkpoint.exists() else {}
    if done.get("fit") != list(run.fit):
        fitted.unlink(missing_ok=True)
        started = time.monotonic()
        main_py(log, threads, "fit", *run.fit, f"--trainer.default_root_dir={folder}")
        done = {"fit": list(run.fit), "fit_s": time.monotonic() - started}
        fitted.write_text(json.dumps(done))
    trained = ("--config", str(folder / "config.yaml"), f"--ckpt_path={checkpoint}")
    for test, words in run.tests.items():
        if results.find(run, test) is None:
            # a finished test that is no result of these words: the new one would get a folder beside its files
            (folder / test / SETTINGS).unlink(missing_ok=True)
            main_py(log, threads, "test", *trained, *words, f"--trainer.default_root_dir={folder / test}")
            results.add(run, test, done["fit_s"], json.loads((folder / test / "metrics.json").read_text()))
