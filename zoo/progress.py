"""Progress of long work: a bar in a terminal, otherwise occasional lines."""

from __future__ import annotations

import math
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sized
from typing import TypeVar

from tqdm import tqdm

SHARE, SECONDS = 0.1, 30.0  # a line is printed after this share of the loop or this time
DELAY = 2.0  # seconds before a bar is shown
RANKS = ("RANK", "LOCAL_RANK", "NODE_RANK", "SLURM_PROCID")  # environment variables of torchrun, Lightning and SLURM
Item = TypeVar("Item")


def progress(items: Iterable[Item], description: str, unit: str, total: int | None = None) -> Iterator[Item]:
    """Yield the items and report progress on stderr: a bar in a terminal, otherwise a line every 30 seconds.

    Args:
        items: The items.
        description: What is done with them.
        unit: Name of the items.
        total: Number of items, if `items` has no length.
    """
    shows = is_first_process()
    if sys.stderr.isatty():
        yield from tqdm(items, description, total, unit=f" {unit}", delay=DELAY, disable=not shows)
        return
    count = len(items) if isinstance(items, Sized) else math.inf if total is None else total
    loop = Loop(description, count, share=math.inf)
    for done, item in enumerate(items, 1):
        yield item
        if shows and done < count and (line := loop.line(done)):
            print(line, file=sys.stderr, flush=True)


def is_first_process() -> bool:
    """Return whether this process reports: the first of a torchrun or SLURM job, or the only one."""
    return all(os.environ.get(name, "0") == "0" for name in RANKS)


class Loop:
    """Progress of a loop of `total` steps, which may be infinite."""

    def __init__(self, name: str, total: int | float = math.inf, *, begun: int = 0, share: float = SHARE) -> None:
        self.name, self.total, self.begun, self.share = name, total, begun, share
        self.done = self._printed = begun
        self._started = self._printed_at = time.monotonic()

    def line(self, done: int, note: Callable[[], str] = str) -> str | None:
        """Return the text of a line if one is due."""
        now = time.monotonic()
        is_due = done >= self.total or now - self._printed_at >= SECONDS
        is_due = is_due or done - self._printed >= self.share * (self.total - self.begun)
        if done == self._printed or not is_due:  # gradient accumulation: this batch took no step
            return None
        self._printed, self._printed_at = done, now
        rate = (done - self.begun) / max(now - self._started, 1e-9)
        parts = [f"{self.name} {done}", note(), f"{rate:.3g} it/s"]
        if math.isfinite(self.total):
            parts[0] += f"/{self.total:.0f} ({done / self.total:.0%})"
            parts.append(f"ETA {tqdm.format_interval((self.total - done) / rate)}")
        return "  ".join(part for part in parts if part)
