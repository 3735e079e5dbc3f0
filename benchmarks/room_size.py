"""Do cameras say how large a room is? The baseline and the camera-aware model after the same training.

    python -m benchmarks.room_size                  # both models, both camera paths, three seeds; then the table
    python -m benchmarks.room_size --seeds 0 --paths loop

Each run is `main.py fit` and `main.py test` as a user would call them. The camera-aware model is tested once more with
every room's cameras exchanged for another room's: what it then loses, it owed to the cameras. What is finished is
skipped, so the command goes on where it was stopped. Two runs at a time share two cores, one thread each.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import product
from pathlib import Path

from datamodules import Rooms
from datamodules.scenes import Scene
from datamodules.sources.base import Split
from zoo import score_answer

MODELS = {"Qwen25VL": "qwen25_vl.yaml", "PRoPEMLLM": "prope.yaml"}
QUESTION = "room_size_estimation"


class SwappedRooms(Rooms):
    """The rooms, each with the cameras of the next one: the control in which cameras must not help."""

    def scenes(self, split: Split) -> list[Scene]:
        scenes = super().scenes(split)
        return [replace(a, cameras=b.cameras) for a, b in zip(scenes, scenes[1:] + scenes[:1], strict=True)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/benchmarks/room_size"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--paths", nargs="+", default=["loop", "local"])
    parser.add_argument("--models", nargs="+", default=list(MODELS))
    parser.add_argument("--jobs", type=int, default=2)
    options, overrides = parser.parse_known_args()  # what is left over goes to main.py fit

    for path in options.paths:
        Rooms(path=path).prepare()
    plan = list(product(options.paths, options.seeds, options.models))
    with ThreadPoolExecutor(options.jobs) as pool:
        for done in pool.map(lambda job: run(options, *job, overrides), plan):
            print(done, flush=True)
    print(table(options))


def run(options: argparse.Namespace, path: str, seed: int, model: str, overrides: list[str]) -> str:
    """Trains and tests one run unless it is there; returns a line on it."""
    folder = options.out / f"{model}-{path}-{seed}"
    swapped = folder / "swapped"
    started = time.monotonic()
    if not (folder / "metrics.json").exists():
        seeded = [f"--{key}={seed}" for key in ("seed_everything", "model.backbone.seed", "data.seed")]
        command = ["fit", "--config", MODELS[model], *seeded, f"--data.source.path={path}", *overrides]
        main_py(options, *command, f"--trainer.default_root_dir={folder}")
        evaluate(options, folder, folder)
    if model != "Qwen25VL" and not (swapped / "metrics.json").exists():
        evaluate(
            options,
            folder,
            swapped,
            "--data.source=benchmarks.room_size.SwappedRooms",
            f"--data.source.path={path}",
        )
    return f"{folder.name}: {score(folder):.3f} ({time.monotonic() - started:.0f} s)"


def evaluate(options: argparse.Namespace, run: Path, out: Path, *extra: str) -> None:
    checkpoint = f"--ckpt_path={run / 'checkpoints/last.ckpt'}"
    main_py(
        options,
        "test",
        "--config",
        str(run / "config.yaml"),
        checkpoint,
        *extra,
        f"--trainer.default_root_dir={out}",
    )


def main_py(options: argparse.Namespace, *words: str) -> None:
    threads = {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // options.jobs))}
    subprocess.run([sys.executable, "main.py", *words], check=True, stdout=subprocess.DEVNULL, env=os.environ | threads)


def score(folder: Path) -> float:
    return float(json.loads((folder / "metrics.json").read_text())["per_question_type"][QUESTION]["score"])


def best_constant(path: str) -> float:
    """The score of the one answer that scores best on the test rooms."""
    truths = [
        q.ground_truth
        for scene in Rooms(path=path).scenes("test")
        for q in scene.questions
        if q.question_type == QUESTION
    ]
    constants = [f"{tenths / 10}" for tenths in range(50, 600)]
    return max(statistics.mean(score_answer(c, truth, QUESTION) for truth in truths) for c in constants)


def table(options: argparse.Namespace) -> str:
    lines = ["| camera path | model | room-size MRA by seed | mean |", "|---|---|---|---|"]
    for path in options.paths:
        lines.append(f"| `{path}` | best constant answer | | {best_constant(path):.3f} |")
        for model in options.models:
            for part, name in (("", model), ("swapped", f"{model}, cameras swapped between rooms")):
                folders = [options.out / f"{model}-{path}-{seed}" / part for seed in options.seeds]
                if all((folder / "metrics.json").exists() for folder in folders):
                    scores = [score(folder) for folder in folders]
                    by_seed = ", ".join(f"{value:.3f}" for value in scores)
                    lines.append(f"| `{path}` | {name} | {by_seed} | {statistics.mean(scores):.3f} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
