"""A map over worker processes that end with their parent."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from functools import partial
from typing import Any


@contextmanager
def process_map(workers: int, chunksize: int = 4) -> Iterator[Callable[..., Iterable[Any]]]:
    """A `map` over processes, or the built-in one for a single worker.

    Args:
        workers: Number of processes.
        chunksize: Items that a process takes at once.
    """
    if workers == 1:
        yield map
        return
    # forking avoids importing torch in each worker; it is unsafe on other systems
    context = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")
    pool = ProcessPoolExecutor(workers, context, _follow_parent)
    try:
        yield partial(pool.map, chunksize=chunksize)
    finally:
        pool.shutdown(cancel_futures=True)


def _follow_parent() -> None:
    """Initialize a worker: ignores Ctrl-C, and exits when the parent dies, whose lock it shares."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
