"""Exclusive and visible preparation of a dataset: a file lock and a progress bar."""

from __future__ import annotations

import fcntl
import sys
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from tqdm import tqdm

Item = TypeVar("Item")


@contextmanager
def locked(path: Path, waiting_message: str) -> Iterator[None]:
    """Holds the lock of a file, which the system releases when the process ends; prints a message if it must wait."""
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(waiting_message, file=sys.stderr, flush=True)
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def progress_bar(items: Collection[Item], description: str) -> Iterator[Item]:
    """Iterates over scenes with a progress bar on a terminal."""
    yield from tqdm(items, desc=description, unit="scene", file=sys.stderr, disable=None)
