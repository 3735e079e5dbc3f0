"""The embedded dataset: furnished rooms, drawn, rendered and written once, with exact ground truth."""

from __future__ import annotations

import fcntl
import hashlib
import json
import multiprocessing
import os
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from itertools import chain, repeat
from pathlib import Path
from typing import Literal

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from datamodules.scenes import Scene
from datamodules.sources.base import SceneSource, Split
from datamodules.sources.rooms.writer import DATASET, SPLITS, Settings, write_scene
from zoo.errors import InputError

VERSION = 7  # of what the settings lead to: raise it with every change to the scenes or the questions


class Rooms(SceneSource):
    """Furnished rooms, rendered on first use, with cameras, depth and the questions that VSI-Bench asks.

    A scene depends on the seed, its split and its number alone. Metres can't be read off a frame: see
    `datamodules.sources.rooms.layout`. Depth is rendered again when wanted: see `render_depth`.

    Args:
        path: how the camera moves: "loop", around the room as in a scan, or "local", around a spot with a
            radius of 0.3 to 0.8 m, which says nothing about the size of the room.
        moving: adds one or two things that drive around, for the questions about time.
        scenes: how many scenes to make for training, validation and test.
        size: width and height of a frame in pixels, even.
        frames: raw frames of each video.
        seed: another seed gives other rooms.
        root: cache folder; each combination of settings has a folder of its own in it.
        workers: processes that render; null takes one for each CPU core.

    Raises ValueError for settings that make no sense.
    """

    def __init__(
        self,
        path: Literal["loop", "local"] = "loop",
        moving: bool = False,
        scenes: tuple[int, int, int] = (1500, 150, 150),
        size: int = 56,
        frames: int = 48,
        seed: int = 0,
        root: str = "cache/rooms",
        workers: int | None = None,
    ) -> None:
        super().__init__()
        if path not in ("loop", "local"):
            raise InputError(f'Rooms: path is "loop" or "local", not {path!r}')
        if len(scenes) != 3 or min(scenes) < 0:
            raise InputError(f"Rooms: scenes are three counts (train, val, test), not {scenes}")
        if size < 16 or size % 2:
            raise InputError(f"Rooms: size {size} must be even (H.264 halves the colour's resolution) and at least 16")
        if frames < 12 or seed < 0:
            raise InputError(f"Rooms: at least 12 frames and a seed of at least 0 are needed, not {frames} and {seed}")
        if workers is not None and workers < 1:
            raise InputError(f"Rooms: workers must be at least 1 or null, not {workers}")
        self.settings = Settings(path, moving, size, frames, seed)
        self.counts = dict(zip(SPLITS, scenes, strict=True))
        self.workers = workers or _cores()
        key = json.dumps([VERSION, asdict(self.settings), self.counts], sort_keys=True)
        self.folder = Path(root).expanduser() / hashlib.sha256(key.encode()).hexdigest()[:16]

    def prepare(self) -> None:
        """Makes the dataset unless it is there. It appears as a whole or not at all: it is written beside its
        place and moved there when done. A second process waits for the first."""
        if self.folder.exists():
            return
        self.folder.parent.mkdir(parents=True, exist_ok=True)
        with _locked(self.folder.with_name(f".{self.folder.name}.lock")):
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
        from datamodules.sources.annotations import read_layout

        if not self.counts[split]:
            return []
        if not self.folder.exists():
            raise FileNotFoundError(f"{self.folder} is absent: call prepare() first")
        scenes, self.missing = read_layout(self.folder, f"{split}.jsonl")
        return scenes

    def _write(self, folder: Path) -> None:
        (folder / DATASET).mkdir(parents=True)
        splits = list(chain.from_iterable(repeat(split, count) for split, count in self.counts.items()))
        numbers = list(chain.from_iterable(range(count) for count in self.counts.values()))
        make = partial(write_scene, folder, self.settings)
        lines: dict[str, list[str]] = {split: [] for split in SPLITS}
        with _mapped(self.workers) as mapped, _progress(len(splits)) as advance:
            for split, questions in zip(splits, mapped(make, splits, numbers), strict=True):
                lines[split].append(questions)
                advance()
        (folder / "settings.json").write_text(json.dumps(asdict(self.settings) | {"version": VERSION}))
        for split in SPLITS:
            (folder / f"{split}.jsonl").write_text("".join(lines[split]))


def _cores() -> int:
    """Those that this process may use, where the system tells."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Holds a file's lock, which the system releases however the process ends."""
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print("another process renders these rooms: waiting for it", file=sys.stderr, flush=True)
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


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


@contextmanager
def _progress(total: int) -> Iterator[Callable[[], None]]:
    """A function to call after each scene: moves a bar or, without a terminal, prints a line every 10 s."""
    console = Console(stderr=True)
    if console.is_terminal:
        columns = TextColumn("rendering rooms"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
        with Progress(*columns, console=console) as progress:
            task = progress.add_task("", total=total)
            yield lambda: progress.advance(task)
        return
    start = last = time.monotonic()
    done = 0

    def advance() -> None:
        nonlocal done, last
        done += 1
        now = time.monotonic()
        if now - last > 10 or done == total:
            last = now
            left = (now - start) / done * (total - done)
            print(f"rendering rooms: {done} of {total}, {left:.0f} s left", file=sys.stderr, flush=True)

    yield advance
