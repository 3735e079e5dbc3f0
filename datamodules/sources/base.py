"""Base class of datasets, the filter of their questions, and helpers to prepare their files."""

from __future__ import annotations

import random
import sys
import time
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import copy
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from jaxtyping import Float64
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from datamodules.scenes import Question, Scene, select_questions
from zoo.benchmarks import Benchmark, VSIBench
from zoo.configuration import Configurable
from zoo.errors import InputError
from zoo.files.atomic_io import try_lock
from zoo.files.ownership import move_new, partial_of, remove_partial

Split = Literal["train", "val", "test"]
SPLITS: tuple[Split, ...] = ("train", "val", "test")
POLL_S = 0.2  # between two attempts to get a lock
ORACLE = "oracle: "  # begins the name of an oracle that lacks something, such as the pixel
POSSIBLE = "possible: "  # begins the name of an oracle that lacks nothing
Poses = Float64[Tensor, "S 4 4"]  # world-to-camera, NaN for a frame without a camera
ChangePoses = Callable[[str, Poses], Poses]  # (name of a scene, its true poses) -> the poses that a model is given
Missing = dict[str, Counter[str]]  # number of questions by scene and type


def by_type(questions: Iterable[Question]) -> Counter[str]:
    """Count the questions of each type."""
    return Counter(question.question_type for question in questions)


class FilteredSplit(NamedTuple):
    """Result of a question filter: kept scenes, number of removed questions, names of all scenes."""

    scenes: list[Scene]
    num_removed: int
    names: list[str]


class SceneSource(Configurable, ABC):
    """A dataset of videos with questions. A new dataset is a file in this folder with `prepare` and `scenes`.

    Attributes:
        missing: Scenes whose video or another file is missing, with their number of questions by type. Set by `scenes`.
            They are listed in the results.
        benchmark: Defines the question types, the wording of prompts and the scores.
        default_question_types: The types that `--data.question_types default` selects. None selects all.
        num_frames: Number of frames that the sampler selects, see `for_frames`. None if unknown.
        has_cameras: False if the dataset is published without cameras. A config that names it then defaults to
            `--model.camera_source auto`: predicted cameras, except for scenes that have a cameras file.
    """

    has_cameras: ClassVar[bool] = True
    default_question_types: Sequence[str] | None = None
    benchmark: Benchmark = VSIBench()
    num_frames: int | None = None

    def __init__(self, benchmark: Benchmark | None = None) -> None:
        self.missing: Missing = {}
        if benchmark is not None:
            self.benchmark = benchmark

    def for_frames(self, num_frames: int) -> SceneSource:
        """Return this dataset with the questions for `num_frames` frames per video."""
        made = copy(self)
        made.num_frames = num_frames
        return made

    def prepare(self) -> None:  # noqa: B027 - most datasets need none
        """Create or check the data on disk. Runs on rank zero before `scenes`, and is cheap when repeated.

        Raises:
            FileNotFoundError: Data that can't be created is missing. The message is one line with the remedy.
        """

    def prepare_splits(self, splits: Collection[Split]) -> None:
        """Prepare some splits only. By default this calls `prepare`."""
        self.prepare()

    @abstractmethod
    def scenes(self, split: Split) -> list[Scene]:
        """Return the scenes of a split in a fixed order, the same on every rank.

        Raises:
            FileNotFoundError: The split is missing.
            ValueError: The split is malformed.
        """

    def oracles(self, scene: Scene, change_poses: ChangePoses | None = None) -> Mapping[str, Sequence[float]]:
        """Return what each oracle knows about a scene, by its name; by default there are none.

        The name begins with `ORACLE` for knowledge that should not suffice for an answer, and with `POSSIBLE` for
        knowledge that should. A number that an oracle lacks, because a view has no camera, is NaN.

        Args:
            scene: The scene.
            change_poses: Makes the poses from which the oracles answer, such as `CameraErrors.poses`. None keeps them.

        Raises:
            OSError: A file of the scene is missing.
            ValueError: A file of the scene is damaged.
        """
        return {}

    def posteriors(self, scene: Scene, change_poses: ChangePoses | None = None) -> Mapping[str, Mapping[str, float]]:
        """Return the probability of each answer to a scene's question, given what each exact rule knows.

        A dataset that draws its answers from a known distribution has such rules; by default there are none. They are
        named as in `oracles`. A scene with rules has one question.

        Args:
            scene: The scene.
            change_poses: Makes the poses that the rules know. None keeps them.

        Raises:
            OSError: A file of the scene is missing.
            ValueError: A file of the scene is damaged.
        """
        return {}

    def filtered_split(self, split: Split, chosen: QuestionFilter) -> FilteredSplit:
        """Apply a question filter. Sources that repeat scenes override this."""
        scenes = self.scenes(split)
        return FilteredSplit(*chosen(scenes), [scene.name for scene in scenes])


def require_file(file: Path, remedy: str) -> None:
    """Raise FileNotFoundError, in one line with the remedy, if a dataset's file is missing."""
    if not file.is_file():
        raise FileNotFoundError(f"{file} is absent: {remedy}")


def only_for_tests(source: SceneSource, split: Split) -> None:
    """Raise ValueError for the training split, which published benchmarks lack."""
    if split == "train":
        raise ValueError(f"{type(source).__name__} has no training split: train on another source, such as Rooms")


def check_split(source: SceneSource, split: Split, evaluation: bool) -> None:
    """Raise ValueError if a split does not fit: a test needs `evaluation`, training excludes it."""
    name = type(source).__name__
    if evaluation and split == "train":
        raise ValueError(f"{name}: --data.source.evaluation is for a test: train on another source")
    if not evaluation and split != "train":
        remedy = (
            "score them with `evaluation: true`, set the `evaluation` of a `Mixture`, or --trainer.limit_val_batches 0"
        )
        raise ValueError(f"{name} is for training, its free answers have no score: {remedy}")


# ---- Filters of a dataset's scenes and questions --------------------------------------------------------------------


@dataclass(frozen=True)
class QuestionFilter:
    """Keep the questions that meet all conditions. None sets no condition.

    Args:
        datasets: First parts of the scenes' names.
        question_types: Question types of the benchmark.
        scene_names: "<dataset>/<scene_name>" or "<scene_name>". A string is the path of a text file with one name per
            line.
        subset: Number of questions drawn from those that meet the other conditions, or all if there are fewer.
        seed: Seed of the draw. The draw depends on nothing else but the questions' ids.

    Raises:
        InputError: The subset is below 1, or the file of names is missing.
    """

    datasets: Sequence[str] | None = None
    question_types: Sequence[str] | None = None
    scene_names: Sequence[str] | None = None
    subset: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if self.subset is not None and self.subset < 1:
            raise InputError(f"--data.subset {self.subset}: at least 1, or null for all questions")
        if isinstance(self.scene_names, str):
            file = Path(self.scene_names).expanduser()
            if not file.is_file():
                raise InputError(f"{file} is absent: scene_names is a list, or a text file with one scene per line")
            lines = file.read_text(encoding="utf-8").splitlines()
            object.__setattr__(self, "scene_names", [line.strip() for line in lines if line.strip()])

    def described(self) -> str:
        """Return the conditions as text for an error message. Empty without conditions."""
        given = {name: value for name, value in asdict(self).items() if value and name != "seed"}
        return "".join(f", with {name}={value}" for name, value in given.items())

    @property
    def option(self) -> str:
        """The option that removed questions of kept scenes: `subset`, else `question_types`."""
        if self.subset is not None:
            return f"--data.subset {self.subset}"
        return f"--data.question_types [{','.join(self.question_types or ())}]"

    def left_out(self, names: Sequence[str], num_questions: int) -> Iterator[str]:
        """Yield lines of text about the scenes and questions that the filter removes from a split.

        Args:
            names: All scenes of the split.
            num_questions: Number of questions that `option` removes from the kept scenes.
        """
        if scenes := len({name for name in names if not self.is_chosen(name)}):
            options = [f"--data.{name}" for name in ("datasets", "scene_names") if getattr(self, name)]
            yield f"{scenes} of {len(set(names))} scenes left out by {' and '.join(options)}"
        if num_questions:
            yield f"{num_questions} question{'s' * (num_questions > 1)} left out by {self.option}"

    def is_chosen(self, scene: str) -> bool:
        """Return whether a scene's name meets the conditions."""
        dataset, _, own = scene.partition("/")
        if self.datasets and dataset not in self.datasets:
            return False
        return not self.scene_names or scene in self.scene_names or own in self.scene_names

    def matching(self, missing: Missing) -> dict[str, int]:
        """Return the number of matching questions of each missing scene with any. `subset` is ignored."""
        chosen = {name: asked for name, asked in missing.items() if self.is_chosen(name)}
        counts = {name: sum(asked[kind] for kind in self.question_types or asked) for name, asked in chosen.items()}
        return {name: count for name, count in counts.items() if count}

    def unmatched(self, names: Iterable[str]) -> list[str]:
        """Return the values of --data.datasets and --data.scene_names that match none of these scenes."""
        known = list(names)
        datasets = {name.partition("/")[0] for name in known}
        scenes = {called for name in known for called in (name, name.partition("/")[2])}
        given = (("datasets", self.datasets, datasets), ("scene_names", self.scene_names, scenes))
        return [f"--data.{option} {name}" for option, asked, there in given for name in set(asked or ()) - there]

    def __call__(self, scenes: Sequence[Scene]) -> tuple[list[Scene], int]:
        """Apply the filter.

        Returns:
            The scenes that keep questions, and the number of questions that `option` removed.
        """
        chosen = [scene for scene in scenes if self.is_chosen(scene.name)]
        total = _count(chosen)
        if kinds := self.question_types:
            meets = [[i for i, q in enumerate(scene.questions) if q.question_type in kinds] for scene in chosen]
            chosen = [select_questions(scene, own) for scene, own in zip(chosen, meets, strict=True)]
        if self.subset is not None:
            total = _count(chosen)
            # identify scenes by position, because a mixture repeats scenes
            asked = sorted((s.name, q.id, n, i) for n, s in enumerate(chosen) for i, q in enumerate(s.questions))
            drawn: dict[int, list[int]] = {}
            for _, _, number, i in random.Random(self.seed).sample(asked, min(self.subset, total)):
                drawn.setdefault(number, []).append(i)
            chosen = [select_questions(chosen[number], sorted(drawn[number])) for number in sorted(drawn)]
        return [scene for scene in chosen if scene.questions], total - _count(chosen)


def _count(scenes: Sequence[Scene]) -> int:
    return sum(len(scene.questions) for scene in scenes)


# ---- Preparation: by one process at a time, completely or not at all, with several workers --------------------------


@contextmanager
def locked(path: Path, waiting_message: str) -> Iterator[None]:
    """Hold a file lock. While another process or its workers have it, wait, and print a message once."""
    if (lock := try_lock(path, is_inherited=True)) is None:
        print(waiting_message, file=sys.stderr, flush=True)
    while lock is None:
        time.sleep(POLL_S)
        lock = try_lock(path, is_inherited=True)
    with lock:
        yield


def build_once(folder: Path, waiting_message: str, write: Callable[[Path], None]) -> None:
    """Write a folder completely or not at all, unless it exists. A second process waits for the first.

    Args:
        folder: The folder. It is written under another name and renamed when it is complete.
        waiting_message: Message that a waiting process prints.
        write: Fills a new folder.
    """
    if folder.exists():
        return
    folder.parent.mkdir(parents=True, exist_ok=True)
    with locked(folder.with_name(f".{folder.name}.lock"), waiting_message):
        if folder.exists():
            return
        unfinished = partial_of(folder)
        remove_partial(unfinished)  # left by a killed process
        unfinished.mkdir()
        try:
            write(unfinished)
            move_new(unfinished, folder)
        finally:
            remove_partial(unfinished)


class _Calls(Dataset):
    """Dataset whose item i is the result of a function for the i-th arguments."""

    def __init__(self, function: Callable[..., Any], arguments: Sequence[tuple[Any, ...]]) -> None:
        self.function, self.arguments = function, arguments

    def __len__(self) -> int:
        return len(self.arguments)

    def __getitem__(self, i: int) -> Any:
        return self.function(*self.arguments[i])


def map_in_processes(function: Callable[..., Any], arguments: Sequence[tuple[Any, ...]], workers: int) -> Iterator[Any]:
    """Yield the results of a function in order, computed by DataLoader workers, which end with their parent process.

    Args:
        function: A function that can be pickled and returns texts or numbers.
        arguments: The arguments of each call.
        workers: Number of processes. 1 computes in this process.
    """
    calls = _Calls(function, arguments)
    own_seeds = torch.Generator()  # keep the global generator unchanged, because weights are drawn from it
    return iter(DataLoader(calls, batch_size=None, num_workers=workers if workers > 1 else 0, generator=own_seeds))
