"""Scenes of Rooms made a second, where the time goes, and what a constant answer scores on the room size.

python benchmarks/rooms.py [--scenes 100] [--workers 2] [--path loop]
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np

from datamodules.sources.rooms import Rooms
from datamodules.sources.rooms.layout import AREA_UNITS, SCALE, draw_scene
from datamodules.sources.rooms.questions import ask
from datamodules.sources.rooms.renderer import render
from datamodules.sources.rooms.writer import write_video

DEFAULT_SET = 1800


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenes", type=int, default=100)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--path", choices=("loop", "local"), default="loop")
    arguments = parser.parse_args()

    with tempfile.TemporaryDirectory() as root:
        rooms = Rooms(arguments.path, scenes=(arguments.scenes, 0, 0), root=root, workers=arguments.workers)
        start = time.perf_counter()
        rooms.prepare()
        seconds = time.perf_counter() - start
        size = sum(file.stat().st_size for file in rooms.folder.rglob("*") if file.is_file())
    rate = arguments.scenes / seconds
    print(f"{arguments.path}, {arguments.workers} workers: {rate:.1f} scenes/s; {DEFAULT_SET} take", end=" ")
    print(f"{DEFAULT_SET / rate:.0f} s and {size / arguments.scenes * DEFAULT_SET / 2**20:.0f} MiB")
    for name, milliseconds in stages(arguments.path, min(arguments.scenes, 20)).items():
        print(f"  {name:10} {milliseconds:6.1f} ms a scene (CPU time of one core)")

    rng = np.random.default_rng(0)
    units, scales = (np.exp(rng.uniform(*np.log(ends), 50_000)) for ends in (AREA_UNITS, SCALE))
    blind, shape = best_constant(units * scales**2), best_constant(scales**2)
    print(f"room-size MRA of the best constant answer: {blind:.3f}; of one who knows the room up to its scale,")
    print(f"as frames show it, and not its scale: {shape:.3f}")


def stages(path: str, scenes: int) -> dict[str, float]:
    """CPU milliseconds a scene of each stage."""
    spent = dict.fromkeys(("draw", "render", "questions", "encode"), 0.0)
    K_px = np.array([[35.0, 0, 28], [0, 35.0, 28], [0, 0, 1]])
    with tempfile.TemporaryDirectory() as folder:
        for index in range(scenes):
            rng = np.random.default_rng(index)
            times = [time.process_time()]
            scene, poses = draw_scene(path, False, 48, rng)
            times.append(time.process_time())
            image = render(scene, poses, K_px, 56, 56)
            rgb = image.rgb  # shaded on first use
            times.append(time.process_time())
            ask(scene, image.ids, rng, "x")
            times.append(time.process_time())
            write_video(Path(folder) / "x.mp4", rgb)
            times.append(time.process_time())
            for name, step in zip(spent, np.diff(times), strict=True):
                spent[name] += 1000 * step / scenes
    return spent


def best_constant(truth: np.ndarray) -> float:
    """Highest mean relative accuracy (thresholds 0.50 to 0.95) of one answer for all."""
    thresholds = np.linspace(0.5, 0.95, 10)[:, None]
    answers = np.quantile(truth, np.linspace(0.1, 0.9, 81))
    return max(float((np.abs(answer - truth) / truth < 1 - thresholds).mean()) for answer in answers)


if __name__ == "__main__":
    main()
