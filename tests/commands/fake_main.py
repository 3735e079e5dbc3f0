"""A launcher that stands in for main.py: it trains and tests in no time, and leaves the files of a real one.

`FAKE_FAILS` names a word of the commands that fail, `FAKE_KILLED` one of the trainings that are broken off after a
checkpoint. Each call is a line of the file `calls`: the command, the folder, and whether a checkpoint was there.
"""

from __future__ import annotations

import json
import os
import random
import sys
from pathlib import Path

KINDS = ("object_counting", "room_size_estimation")
QUESTIONS = 40


def main(words: list[str]) -> str | None:
    command, *options = words
    folder = Path(next(word for word in options if "default_root_dir" in word).partition("=")[2])
    checkpoint = folder / "checkpoints/last.ckpt"
    with Path("calls").open("a") as file:
        print(command, folder.name, "again" if command == "fit" and checkpoint.exists() else "", file=file)
    if os.environ.get("FAKE_FAILS") in options:
        return "it is wrong"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").write_text("{}\n")
    if command == "fit":
        checkpoint.parent.mkdir(exist_ok=True)
        checkpoint.touch()
        return "interrupted" if os.environ.get("FAKE_KILLED") in options else None
    # cameras help, and wrong ones do not
    level = 0.2 + 0.6 * ("PRoPE" in str(folder)) - 0.6 * ("--data.perturbation=OtherCameras" in options)
    draw = random.Random(str(folder))
    scores = [round(min(1.0, max(0.0, draw.gauss(level, 0.1))), 2) for _ in range(QUESTIONS)]
    kinds = [KINDS[number % len(KINDS)] for number in range(QUESTIONS)]
    rows = [
        {"id": str(n), "question_type": kinds[n], "scene": f"room {n // 4}", "score": scores[n]}
        | {"ground_truth": str(n), "prediction": f"{n * scores[n]:.1f}"}
        for n in range(QUESTIONS)
    ]
    (folder / "predictions.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    means = {kind: sum(row["score"] for row in rows if row["question_type"] == kind) * 2 / QUESTIONS for kind in KINDS}
    (folder / "metrics.json").write_text(
        json.dumps(
            {
                "benchmark": "VSIBench",
                "scorer": "spatial_mllm",
                "per_question_type": {kind: {"score": mean, "count": QUESTIONS // 2} for kind, mean in means.items()},
                "all": {"macro": sum(means.values()) / 2},
                "baselines": {"constant": {"per_question_type": {KINDS[0]: {"score": 0.3}}, "all": {"macro": 0.3}}},
            }
        )
    )
    return None


if __name__ == "__main__":
    sys.exit(main(sys.argv[sys.argv.index("commands.main") + 1 :]))
