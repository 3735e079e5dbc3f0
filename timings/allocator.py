"""Training steps per second on a CPU: freed memory is kept for the next step, or handled by glibc's defaults.

python -m timings.allocator [--rounds 5] [--steps 30]
"""

from __future__ import annotations

import argparse
import os
import re
import statistics
import subprocess
import sys
import tempfile

from timings.measure import spread
from timings.tables import markdown

KEPT = "import commands.main as main; main.main()"
GIVEN_BACK = "import commands.main as main; main.keep_freed_memory = lambda: None; main.main()"
CONFIGS = ("--config=prope.yaml", "--config=data_rooms.yaml", "--data.num_frames=16", "--trainer.limit_val_batches=0")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=30)
    arguments = parser.parse_args()
    found: dict[str, list[tuple[float, float, float]]] = {"kept": [], "given back": []}
    for number in range(arguments.rounds):
        order = (("kept", KEPT), ("given back", GIVEN_BACK))
        for name, code in order if number % 2 else reversed(order):
            found[name].append(train(code, arguments.steps))
    rows = []
    for name, rounds in found.items():
        rates, system, peak = zip(*rounds, strict=True)
        row = {"freed memory": name, "steps/s, median (least to greatest)": spread(rates)}
        row |= {
            "seconds in the system": f"{statistics.median(system):.1f}",
            "peak GB": f"{statistics.median(peak):.2f}",
        }
        rows.append(row)
    print(markdown(rows))
    ratios = [kept[0] / given[0] for kept, given in zip(*found.values(), strict=True)]
    print(f"ratio of a round: {spread(ratios, 2)}")


def train(code: str, steps: int) -> tuple[float, float, float]:
    """Train in a separate process. Return steps per second, seconds of system time, and the peak in gigabytes."""
    with tempfile.TemporaryDirectory() as folder:
        words = ["fit", *CONFIGS, f"--trainer.max_steps={steps}", f"--trainer.default_root_dir={folder}"]
        command = [sys.executable, "-c", code, *words]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
            assert process.stdout is not None
            printed = process.stdout.read()
            _, status, usage = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(printed)
    return float(re.findall(r"([\d.]+) it/s", printed)[-1]), usage.ru_stime, usage.ru_maxrss * 1024 / 1e9


if __name__ == "__main__":
    main()
