"""How long a call takes, and how much memory beyond what was there before it."""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

# freed blocks go back to the system at once: else the resident set would count them
GIVE_BACK = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}


def timed(run: Callable[[], Any], device: str = "cpu") -> float:
    """Return the seconds of a call, with all that it started on a GPU."""
    synchronize = torch.cuda.synchronize if device.startswith("cuda") else lambda: None
    synchronize()
    start = time.perf_counter()
    run()
    synchronize()
    return time.perf_counter() - start


def interleaved(
    work: Mapping[str, Callable[[], Any]], repeats: int, device: str = "cpu", *, warm_up: bool = True
) -> dict[str, list[float]]:
    """Return the seconds of each call in each round: calls take turns, so that a noisy machine is noisy to all.

    Args:
        work: The calls by name.
        repeats: The number of rounds.
        device: The device of the calls.
        warm_up: Whether a round that is not counted comes first.
    """
    if warm_up:
        interleaved(work, 1, device, warm_up=False)
    rounds = [{name: timed(run, device) for name, run in work.items()} for _ in range(repeats)]
    return {name: [seconds[name] for seconds in rounds] for name in work}


def spread(values: Sequence[float], digits: int = 3) -> str:
    """Return the median of some values, with the least and the greatest."""
    middle, least, greatest = (f"{value:.{digits}f}" for value in (statistics.median(values), min(values), max(values)))
    return f"{middle} ({least} to {greatest})"


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of what is measured on one scene: the video's size, and where it is computed."""
    parser.add_argument("--height", type=int, default=476)
    parser.add_argument("--width", type=int, default=644)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=os.cpu_count())


def processor(options: argparse.Namespace) -> str:
    """Return the name of the GPU, or how many threads of a CPU compute."""
    return torch.cuda.get_device_name() if options.device.startswith("cuda") else f"{options.threads} CPU threads"


def peak_growth(run: Callable[[], Any], device: str) -> int:
    """Return the bytes at the peak of a call: the allocator's on CUDA, of the resident set on a CPU.

    On a CPU in a process of its own, see `in_a_process`, after a small call that sets up what is set up once.
    """
    if device.startswith("cuda"):
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        kept = run()  # noqa: F841 - what it returns counts
        return torch.cuda.max_memory_allocated() - before
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    before = resident("VmRSS")
    kept = run()  # noqa: F841
    return resident("VmHWM") - before


def resident(field: str) -> int:
    """Return a line of /proc/self/status, in bytes."""
    status = Path("/proc/self/status").read_text()
    found = re.search(rf"{field}:\s+(\d+) kB", status)
    assert found is not None
    return 1024 * int(found.group(1))


def in_a_process(module: str, **options: object) -> Any:
    """Run a benchmark in a process of its own, and return the JSON of the last line that it prints.

    Args:
        module: The benchmark's module, such as `benchmarks.vggt`.
        **options: Its options. A list has several values; True is an option without a value, False none.

    Raises:
        MemoryError: The machine has too little memory for it.
    """
    command = [sys.executable, "-m", module]
    for name, value in options.items():
        values = [] if value is True else value if isinstance(value, list) else [value]
        command += [f"--{name.replace('_', '-')}", *map(str, values)] if value is not False else []
    done = subprocess.run(command, env=os.environ | GIVE_BACK, capture_output=True, text=True)
    if done.returncode == -signal.SIGKILL or "out of memory" in done.stderr or "can't allocate memory" in done.stderr:
        raise MemoryError(f"{' '.join(command)} needs more memory than there is")
    if done.returncode:
        sys.exit(done.stderr)
    return json.loads(done.stdout.splitlines()[-1])
