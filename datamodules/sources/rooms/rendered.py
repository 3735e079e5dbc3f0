"""A dataset that is rendered once, by several processes, and then lies on disk as a whole or not at all."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
import sys
import threading
from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from datamodules.scenes import Scene
from datamodules.sources.annotations import read_layout
from datamodules.sources.base import SceneSource, Split
from datamodules.sources.lock import locked
from datamodules.sources.progress import progress
from datamodules.sources.rooms.writer import SPLITS

Make = Callable[[Split, int], str]  # writes scene number i of a split and returns its questions as lines of JSON


class RenderedScenes(SceneSource):
    """Scenes in `folder`, made there on first use.

    Args:
        folder: of these scenes alone: other settings, another folder.
        counts: how many scenes each split has.
        workers: processes that render; None takes one for each CPU core.
    """

    what = "rendering rooms"

    def __init__(self, folder: Path, counts: dict[Split, int], workers: int | None) -> None:
        super().__init__()
        self.folder, self.counts = folder, counts
        self.workers = workers or cores()

    @abstractmethod
    def work(self, folder: Path) -> Make:
        """Gets `folder` ready for the scenes and returns the function that makes one; it is sent to processes."""

    def prepare(self) -> None:
        """Makes the dataset unless it is there. It appears as a whole or not at all: it is written beside its
        place and moved there when done. A second process waits for the first."""
        if self.folder.exists():
            return
        self.folder.parent.mkdir(parents=True, exist_ok=True)
        lock = self.folder.with_name(f".{self.folder.name}.lock")
        with locked(lock, "another process renders these rooms: waiting for it"):
            if self.folder.exists():
                return
            unfinished = self.folder.with_name(f".{self.folder.name}.unfinished")
            shutil.rmtree(unfinished, ignore_errors=True)  # of a process that was killed: we hold its lock
            try:
                self._write(unfinished)
                unfinished.rename(self.folder)
            finally:
                shutil.rmtree(unfinished, ignore_errors=True)

    def scenes(self, split: Split) -> list[Scene]:
        if not self.counts[split]:
            return []
        if not self.folder.exists():
            raise FileNotFoundError(f"{self.folder} is absent: call prepare() first")
        scenes, self.missing = read_layout(self.folder, f"{split}.jsonl")
        return scenes

    def _write(self, folder: Path) -> None:
        folder.mkdir(parents=True)
        make = self.work(folder)
        splits = [split for split, count in self.counts.items() for _ in range(count)]
        numbers = [number for count in self.counts.values() for number in range(count)]
        lines: dict[str, list[str]] = {split: [] for split in SPLITS}
        with _mapped(self.workers) as mapped, progress(self.what, len(splits)) as advance:
            for split, questions in zip(splits, mapped(make, splits, numbers), strict=True):
                lines[split].append(questions)
                advance()
        for split in SPLITS:
            (folder / f"{split}.jsonl").write_text("".join(lines[split]))


def cores() -> int:
    """Those that this process may use, where the system tells."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextmanager
def _mapped(workers: int) -> Iterator[Callable[..., Iterable[str]]]:
    """A `map` over processes, or the plain one for a single worker."""
    if workers == 1:
        yield map
        return
    # forking skips importing torch anew in each worker; elsewhere it isn't safe
    context = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")
    pool = ProcessPoolExecutor(workers, context, _follow_parent)
    try:
        yield partial(pool.map, chunksize=4)
    finally:
        pool.shutdown(cancel_futures=True)


def _follow_parent() -> None:
    """In a worker: leave Ctrl-C to the parent, and end with it, however it ends (it also shares its lock)."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
