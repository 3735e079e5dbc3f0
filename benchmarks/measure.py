"""How long a call takes, and how much memory beyond what was there before it."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

# freed blocks go back to the system at once: else the resident set would count them
GIVE_BACK = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}


def timed(run: Callable[[], Any], device: str) -> float:
    """Seconds of a call, with all that it started on a GPU."""
    synchronise = torch.cuda.synchronize if device.startswith("cuda") else lambda: None
    synchronise()
    start = time.perf_counter()
    run()
    synchronise()
    return time.perf_counter() - start


def peak_growth(run: Callable[[], Any], device: str) -> int:
    """Bytes at the peak of a call: the allocator's on CUDA, of the resident set on a CPU.

    On a CPU in a process of its own, with `GIVE_BACK` in its environment, after a small call that sets up what is set
    up once.
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
    """A line of /proc/self/status, in bytes."""
    status = Path("/proc/self/status").read_text()
    found = re.search(rf"{field}:\s+(\d+) kB", status)
    assert found is not None
    return 1024 * int(found.group(1))
