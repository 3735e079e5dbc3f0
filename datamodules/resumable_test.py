"""The questions of a test, of which an interrupted one may have answered some."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from lightning import Trainer

from datamodules.collate import record
from datamodules.samplers import FrameSampler
from datamodules.scenes import Question, Scene
from zoo.files.fingerprint import file_fingerprint
from zoo.sequences.loaded_scene import LoadedScene

Records = dict[str, dict[str, Any]]  # by the id of the question


def is_limited(batches: int | float) -> bool:
    """Whether a `limit_<stage>_batches` of the Trainer leaves batches out: 1 is one batch, 1.0 all of them."""
    return isinstance(batches, int) or batches < 1


def tested_by(trainer: Trainer) -> ResumableTest:
    """Return what the DataModule's test asks; nothing without a DataModule, or of one that is not the zoo's."""
    found = getattr(getattr(trainer, "datamodule", None), "tested", None)
    return found if isinstance(found, ResumableTest) else ResumableTest()


@dataclass
class ResumableTest:
    """What a test asks on all ranks; empty before its data is read.

    Attributes:
        find_answered: Returns the records of the questions that are not asked again; called when the test is known.
        scenes: All scenes, with all of their questions and without a perturbation.
        records: Of all questions.
        files: Fingerprints of the files of each scene.
        answered: What `find_answered` returned.
    """

    find_answered: Callable[[], Records] = dict
    scenes: list[Scene] = field(default_factory=list)
    records: list[dict[str, Any]] = field(default_factory=list)
    files: dict[str, list[str]] = field(default_factory=dict)
    answered: Records = field(default_factory=dict)

    def read(self, scenes: list[Scene], prompt: Callable[[Question], str], sampler: FrameSampler) -> None:
        """Set what the test asks, and find what is answered."""
        self.scenes = scenes
        self.records = [record(LoadedScene(scene.name), q, prompt(q)) for scene in scenes for q in scene.questions]
        self.files = {}
        for scene in scenes:
            files = (scene.video, scene.cameras, scene.depth, *sampler.reads(scene.name))
            self.files[scene.name] = [file_fingerprint(file) for file in files if file and file.exists()]
        self.answered = self.find_answered()

    def remaining(self, batches: int | float) -> tuple[list[Scene], list[Scene]]:
        """Return the scenes whose batches count, and the same with the questions alone that are left.

        Args:
            batches: `limit_test_batches` of the Trainer, which counts the batches of the whole test, whichever of them
                are answered. Without a limit, scenes without a question that is left are in neither list.
        """
        asked = [scene for scene in self.scenes if scene.questions]
        rest = [replace(s, questions=tuple(q for q in s.questions if q.id not in self.answered)) for s in asked]
        if not is_limited(batches):
            asked = rest = [scene for scene in rest if scene.questions]
        return asked, rest
