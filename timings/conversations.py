"""Start-up time and memory of a large file of conversations, before the first batch.

    python -m timings.conversations              # 10,000, 100,000 and 820,000 rows
    python -m timings.conversations 10000        # other sizes

Each start runs in a separate process. The memory is the process's largest resident set. The memory after the imports is
listed separately.
"""

from __future__ import annotations

import json
import random
import resource
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

from timings.tables import markdown

SIZES = (10_000, 100_000, 820_000)
ROWS_PER_VIDEO = 100
STARTS = 3


def write(folder: Path, rows: int) -> Path:
    """Write rows of about 350 bytes, one hundred per video, as in VSI-590K."""
    draw, words = (
        random.Random(0),
        ["the", "size", "of", "this", "room", "chair", "table", "left", "right", "behind", "closest", "first"],
    )
    videos = [f"scannet/scene{i:05}.mp4" for i in range(max(1, rows // ROWS_PER_VIDEO))]
    (folder / "scannet").mkdir()
    for video in videos:
        (folder / video).touch()
    path = folder / "data.jsonl"
    with path.open("w") as file:
        for i in range(rows):
            text = f"<image>\nThese are frames of a video.\n{' '.join(draw.choices(words, k=30))}?"
            turns = [{"from": "human", "value": text}, {"from": "gpt", "value": str(draw.random())}]
            row = {"id": i, "video": draw.choice(videos), "question_type": "object_counting", "conversations": turns}
            file.write(json.dumps(row) + "\n")
    return path


def start(path: str) -> None:
    """List the scenes and draw the first batch. Print seconds of CPU, and MB after the imports and at the peak."""
    from datamodules.question_sampler import QuestionSampler
    from datamodules.sources import Conversations

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
    began = time.process_time()
    scenes = Conversations(path).scenes("train")
    sampler = QuestionSampler([len(scene.questions) for scene in scenes], 1, 4, seed=0)
    (item,) = next(iter(sampler))
    assert scenes[item.scene].questions[item.questions[0]].ground_truth
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
    print(f"{time.process_time() - began:.2f} {before:.0f} {peak:.0f}")


def main(sizes: list[int]) -> None:
    """Print a table."""
    table = []
    for rows in sizes:
        with TemporaryDirectory() as folder:
            path = write(Path(folder), rows)
            size = path.stat().st_size / 1e6
            for _ in range(STARTS):
                command = [sys.executable, "-c", f"from timings.conversations import start; start({str(path)!r})"]
                environment = {"PYTHONPATH": str(Path.cwd()), "PATH": "/usr/bin:/bin"}
                done = subprocess.run(
                    command, cwd=folder, env=environment, stdout=subprocess.PIPE, text=True, check=True
                )
                seconds, imports, peak = done.stdout.split()
                row = {"rows": f"{rows:,}", "file": f"{size:.0f} MB", "CPU": f"{seconds} s"}
                table.append({**row, "peak memory": f"{peak} MB", "of which imports": f"{imports} MB"})
    print(markdown(table))


if __name__ == "__main__":
    main([int(size) for size in sys.argv[1:]] or list(SIZES))
