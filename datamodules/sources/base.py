"""What every dataset is to the DataModule: something that makes itself ready and then lists its scenes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable
from typing import TYPE_CHECKING, Literal, NamedTuple

from datamodules.scenes import Question, Scene
from zoo.benchmarks import Benchmark, VSIBench

if TYPE_CHECKING:
    from datamodules.filters import QuestionFilter

Split = Literal["train", "val", "test"]
Missing = dict[str, Counter[str]]  # of each scene: questions by type


def by_type(questions: Iterable[Question]) -> Counter[str]:
    """How many questions there are of each type."""
    return Counter(question.question_type for question in questions)


class Chosen(NamedTuple):
    """Scenes that a filter leaves, how many questions it leaves out of those it is about, and the names of all."""

    scenes: list[Scene]
    left_out: int
    names: list[str]


class SceneSource(ABC):
    """A dataset of videos with questions. A new one is a file in this folder with these two methods.

    `missing` holds, once `scenes` has been called, the scenes whose video, or what else belongs to them, is absent
    and how many questions of each type each of them has: they are counted and listed in the results, never silently
    dropped.

    Attributes:
        benchmark: defines the question types, the prompt's wording and the scores of the source's questions.
    """

    benchmark: Benchmark = VSIBench()

    def __init__(self) -> None:
        self.missing: Missing = {}

    def prepare(self) -> None:  # noqa: B027 - most datasets are simply there
        """Make or check the data on disk; runs once, on rank zero, before `scenes`. Calling it again is cheap.

        Long work shows a progress bar. Raises FileNotFoundError, in one line that says what to put where, if
        something is absent that can't be made here.
        """

    @abstractmethod
    def scenes(self, split: Split) -> list[Scene]:
        """The scenes of a split in a fixed order, the same on every rank.

        Raises FileNotFoundError or ValueError, in one line, for a split that is absent or can't be understood."""

    def filtered_split(self, split: Split, chosen: QuestionFilter) -> Chosen:
        """What a filter leaves of the scenes; a source that shows some scenes more often than others overrides this."""
        scenes = self.scenes(split)
        return Chosen(*chosen(scenes), [scene.name for scene in scenes])
