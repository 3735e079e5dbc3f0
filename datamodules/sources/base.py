"""Base class of datasets, which prepare their files and list their scenes; preparation by one process at a time."""

from __future__ import annotations

import fcntl
import shutil
import sys
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal, NamedTuple

from datamodules.scenes import Question, Scene
from zoo.benchmarks import Benchmark, VSIBench
from zoo.configuration import Configurable

if TYPE_CHECKING:
    from datamodules.filters import QuestionFilter

Split = Literal["train", "val", "test"]
SPLITS: tuple[Split, ...] = ("train", "val", "test")
Missing = dict[str, Counter[str]]  # number of questions by scene and type


def by_type(questions: Iterable[Question]) -> Counter[str]:
    """Number of questions of each type."""
    return Counter(question.question_type for question in questions)


class FilteredSplit(NamedTuple):
    """Result of a question filter: remaining scenes, number of removed questions, names of all scenes."""

    scenes: list[Scene]
    num_removed: int
    names: list[str]


class SceneSource(Configurable, ABC):
    """A dataset of videos with questions. A new one is a file in this folder with `prepare` and `scenes`.

    Attributes:
        missing: After `scenes`: scenes without their video or another file, and their number of questions by type.
            They are counted and listed in the results.
        benchmark: Defines the question types, the wording of prompts, and the scores of this dataset.
        default_question_types: The types that `--data.question_types default` asks; None is all.
        num_frames: Number of frames that the sampler takes, set by the DataModule; None is unknown.
        has_cameras: False of a dataset that is published without cameras. A command whose config names it takes
            `--model.camera_source auto` by default: those of the geometry encoder, except for scenes with cameras.
    """

    has_cameras: ClassVar[bool] = True
    default_question_types: Sequence[str] | None = None
    benchmark: Benchmark = VSIBench()
    num_frames: int | None = None

    def __init__(self, benchmark: Benchmark | None = None) -> None:
        self.missing: Missing = {}
        if benchmark is not None:
            self.benchmark = benchmark

    def prepare(self) -> None:  # noqa: B027 - most datasets need none
        """Create or check the data on disk; run once on rank zero before `scenes`, and is cheap when repeated.

        Raises:
            FileNotFoundError: Data that can't be created is absent, in one line with the remedy.
        """

    def prepare_splits(self, splits: Collection[Split]) -> None:
        """`prepare`, of a source that can do so for some splits alone."""
        self.prepare()

    @abstractmethod
    def scenes(self, split: Split) -> list[Scene]:
        """The scenes of a split in a fixed order, the same on every rank.

        Raises:
            FileNotFoundError: The split is absent, in one line.
            ValueError: The split is malformed, in one line.
        """

    def filtered_split(self, split: Split, chosen: QuestionFilter) -> FilteredSplit:
        """Apply a question filter; overridden by sources that repeat scenes."""
        scenes = self.scenes(split)
        return FilteredSplit(*chosen(scenes), [scene.name for scene in scenes])


def require_file(file: Path, remedy: str) -> None:
    """Raise FileNotFoundError, in one line with the remedy, if a file of a dataset is absent."""
    if not file.is_file():
        raise FileNotFoundError(f"{file} is absent: {remedy}")


def only_for_tests(source: SceneSource, split: Split) -> None:
    """Raise ValueError for the training split, which a published benchmark lacks."""
    if split == "train":
        raise ValueError(f"{type(source).__name__} has no training split: train on another source, such as Rooms")


@contextmanager
def locked(path: Path, waiting_message: str) -> Iterator[None]:
    """Hold the lock of a file, which the system releases when the process ends; print a message if it must wait."""
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(waiting_message, file=sys.stderr, flush=True)
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def build_once(folder: Path, waiting_message: str, write: Callable[[Path], None]) -> None:
    """Write a folder whole or not at all, unless it exists; a second process waits for the first.

    Args:
        folder: The folder. It is written beside its place, and renamed when it is complete.
        waiting_message: What a waiting process prints.
        write: Fills a new folder.
    """
    if folder.exists():
        return
    folder.parent.mkdir(parents=True, exist_ok=True)
    with locked(folder.with_name(f".{folder.name}.lock"), waiting_message):
        if folder.exists():
            return
        unfinished = folder.with_name(f".{folder.name}.unfinished")
        shutil.rmtree(unfinished, ignore_errors=True)  # of a killed process, whose lock is released
        unfinished.mkdir()
        try:
            write(unfinished)
            unfinished.rename(folder)
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)
