"""`main.py` in two processes (gloo): the same numbers as in one, no question twice, one run folder."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import main

REPOSITORY = Path(main.__file__).parent
SMALL = [
    *("--data.source.scenes", "[6,2,3]", "--data.question_types", "null", "--data.num_frames", "4"),
    *("--data.batch_size", "2", "--model.backbone.layers", "2", "--model.backbone.hidden_size", "64"),
    *("--model.backbone.heads", "2", "--model.backbone.key_value_heads", "1", "--trainer.accelerator", "cpu"),
]


def run(folder: Path, *words: str) -> None:
    environment = {key: value for key, value in os.environ.items() if key != "ZOO_RUN"} | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(REPOSITORY / "main.py"), *words]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=250)
    assert done.returncode == 0, done.stdout + done.stderr


def results(folder: Path) -> list[bytes]:
    return [(folder / name).read_bytes() for name in ("metrics.json", "predictions.jsonl", "predictions.settings.json")]


def test_two_processes_train_and_score_as_one(tmp_path: Path, rooms_root: Path) -> None:
    data = ["--data.source.root", str(rooms_root)]
    two = ["--trainer.devices", "2", "--trainer.strategy", "ddp"]
    run(tmp_path, "fit", "--config", "prope.yaml", *SMALL, *data, *two, "--trainer.max_steps", "2")
    (folder,) = (tmp_path / "runs").iterdir()  # both processes wrote into the same one
    run(tmp_path, "test", *two)
    together = results(folder)
    run(tmp_path, "test", "--trainer.devices", "1", "--trainer.strategy", "auto")
    assert results(folder) == together  # to the byte
    ids = [json.loads(line)["id"] for line in together[1].splitlines()]
    assert len(set(ids)) == len(ids) > 10
