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
from typing import Any

ENDING = {signal.SIGINT, signal.SIGTERM}


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

    def mapped(function: Callable[..., Any], *items: Iterable[Any]) -> Iterable[Any]:
        with _signals_wait():  # this starts the workers
            return pool.map(function, *items, chunksize=chunksize)

    try:
        yield mapped
    finally:
        pool.shutdown(cancel_futures=True)


@contextmanager
def _signals_wait() -> Iterator[None]:
    """Hold back Ctrl-C and SIGTERM: a handler that raises between two forks would leave workers that nobody ends."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows, where nothing forks
        yield
        return
    former = signal.pthread_sigmask(signal.SIG_BLOCK, ENDING)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, former)


def _follow_parent() -> None:
    """Initialize a worker: ignores Ctrl-C, ends at SIGTERM, and exits when the parent dies, whose lock it shares."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, ENDING)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
