"""Measure the time of a call, and the memory that it adds."""

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

# return freed blocks to the system at once, because the resident set would count them
GIVE_BACK = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}


def timed(run: Callable[[], Any], device: str = "cpu") -> float:
    """Return the seconds of a call, including its work on a GPU."""
    synchronize = torch.cuda.synchronize if device.startswith("cuda") else lambda: None
    synchronize()
    start = time.perf_counter()
    run()
    synchronize()
    return time.perf_counter() - start


def interleaved(
    work: Mapping[str, Callable[[], Any]], repeats: int, device: str = "cpu", *, warm_up: bool = True
) -> dict[str, list[float]]:
    """Return the seconds of each call in each round. Calls take turns, so that noise of the machine affects all.

    Args:
        work: The calls by name.
        repeats: The number of rounds.
        device: The device of the calls.
        warm_up: Whether to run one round first that is not counted.
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
    """Add the options of timings on one scene: the video's size, repeats, device and threads."""
    parser.add_argument("--height", type=int, default=476)
    parser.add_argument("--width", type=int, default=644)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=os.cpu_count())


def processor(options: argparse.Namespace) -> str:
    """Return the name of the GPU, or the number of CPU threads."""
    return torch.cuda.get_device_name() if options.device.startswith("cuda") else f"{options.threads} CPU threads"


def peak_growth(run: Callable[[], Any], device: str) -> int:
    """Return the bytes that a call adds at its peak: in CUDA's allocator, or in the resident set on a CPU.

    On a CPU, call it in a separate process (see `in_a_process`), after a small call that sets up what is set up once.
    """
    if device.startswith("cuda"):
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        kept = run()  # noqa: F841 - the returned value counts too
        return torch.cuda.max_memory_allocated() - before
    Path("/proc/self/clear_refs").write_text("5")  # reset the peak
    before = resident("VmRSS")
    kept = run()  # noqa: F841
    return resident("VmHWM") - before


def resident(field: str) -> int:
    """Return a field of /proc/self/status in bytes."""
    status = Path("/proc/self/status").read_text()
    found = re.search(rf"{field}:\s+(\d+) kB", status)
    assert found is not None
    return 1024 * int(found.group(1))


def in_a_process(module: str, **options: object) -> Any:
    """Run a benchmark in a separate process, and return the JSON of the last line that it prints.

    Args:
        module: The timing's module, such as `timings.vggt`.
        **options: Options of the benchmark. A list has several values, True is an option without a value, and False is
            left out.

    Raises:
        MemoryError: The machine has too little memory.
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
