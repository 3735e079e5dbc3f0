"""Runs for reports: made-up answers, tested by the real callbacks."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import yaml

from callbacks import MetricsCallback
from tests.callbacks.toy import Toy, record, trainer
from zoo.benchmarks import VSIBench

BENCHMARK = VSIBench()
Record = dict[str, Any]
CONFIG = {
    "trainer": {"default_root_dir": None},
    "model": {
        "class_path": "zoo.PRoPEMLLM",
        "init_args": {
            "camera_encoding": {"class_path": "zoo.PRoPE", "init_args": {"scale": None, "reference": "first"}},
            "fusion": None,
            "backbone": {"class_path": "zoo.TinyQwen25VL", "init_args": {"layers": 4}},
        },
    },
    "data": {"class_path": "datamodules.VideoQADataModule", "init_args": {"num_frames": 24, "sampler": None}},
}


def answers(count: int, *, seed: int = 0, right: float = 0.3, scenes: int = 5) -> list[Record]:
    """Questions of all types, the same whatever the seed, and answers that are right with a probability."""
    rng, records = random.Random(seed), []
    for i in range(count):
        kind = BENCHMARK.question_types[i % len(BENCHMARK.question_types)]
        truth = str(2 + i % 7) if kind in BENCHMARK.numeric_types else "ABCD"[i % 4]
        wrong = str(3 + i % 7) if kind in BENCHMARK.numeric_types else "none"
        answer = truth if rng.random() < right else wrong
        records.append(record(f"q{i:05d}", kind, answer, truth, f"toy/{i % scenes}"))
    return records


TESTED: dict[str, dict[str, bytes]] = {}  # the files of a test, by its answers and scorer


def write_results(folder: Path, records: list[Record], scorer: str | None = None) -> None:
    """Leave the files of a test of made answers, which are made once."""
    key = json.dumps([records, scorer])
    if key not in TESTED:
        before = set(folder.iterdir())
        trainer(folder, MetricsCallback(scorer)).test(Toy([records]), verbose=False)
        TESTED[key] = {path.name: path.read_bytes() for path in folder.iterdir() if path not in before}
    for name, content in TESTED[key].items():
        (folder / name).write_bytes(content)


def make_run(folder: Path, records: list[Record] | None, config: Any = CONFIG, scorer: str | None = None) -> Path:
    """A run's folder, tested on the records; not tested if they are None."""
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    if records is not None:
        write_results(folder, records, scorer)
    return folder
