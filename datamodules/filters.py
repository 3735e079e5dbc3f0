"""Which scenes and questions of a dataset a run is about."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from datamodules.scenes import Scene
from datamodules.sources.base import Missing
from zoo.errors import InputError
from zoo.metrics import QUESTION_TYPES


@dataclass(frozen=True)
class QuestionFilter:
    """Leaves the questions that meet all conditions; None is no condition.

    Args:
        datasets: the first parts of the scenes' names.
        question_types: as VSI-Bench names them.
        scene_names: "<dataset>/<scene_name>", or the scene's own name; a string is the path of a text file with one
            a line.
        subset: how many questions to draw of those that meet the other conditions, without order; all if there
            are fewer.
        seed: of that draw, which depends on it and the questions' ids alone.

    Raises:
        InputError: an unknown question type, a subset below 1, a file of names that is absent.
    """

    datasets: Sequence[str] | None = None
    question_types: Sequence[str] | None = None
    scene_names: Sequence[str] | None = None
    subset: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if unknown := set(self.question_types or ()) - set(QUESTION_TYPES):
            raise InputError(f"no question type {', '.join(sorted(unknown))}; there are {', '.join(QUESTION_TYPES)}")
        if self.subset is not None and self.subset < 1:
            raise InputError(f"a subset of {self.subset} questions is none: at least 1, or null for all")
        if isinstance(self.scene_names, str):
            file = Path(self.scene_names).expanduser()
            if not file.is_file():
                raise InputError(f"{file} is absent: scene_names is a list, or a text file with a scene a line")
            object.__setattr__(self, "scene_names", file.read_text(encoding="utf-8").split())

    def described(self) -> str:
        """The conditions in words, for an error; empty where there are none."""
        given = {name: value for name, value in asdict(self).items() if value and name != "seed"}
        return "".join(f", with {name}={value}" for name, value in given.items())

    def is_chosen(self, scene: str) -> bool:
        """Whether a scene of this name may be asked about."""
        dataset, _, own = scene.partition("/")
        if self.datasets and dataset not in self.datasets:
            return False
        return not self.scene_names or scene in self.scene_names or own in self.scene_names

    def matching(self, missing: Missing) -> dict[str, int]:
        """How many questions of absent scenes meet the conditions, scenes without any left out; not the `subset`."""
        kinds = self.question_types
        counts = {
            name: sum(n for kind, n in asked.items() if not kinds or kind in kinds)
            for name, asked in missing.items()
            if self.is_chosen(name)
        }
        return {name: count for name, count in counts.items() if count}

    def unmatched(self, names: Iterable[str]) -> list[str]:
        """The conditions that no scene of these names meets, in words: mistyped ones, or those of another split."""
        known = list(names)
        datasets = {name.partition("/")[0] for name in known}
        scenes = {called for name in known for called in (name, name.partition("/")[2])}
        given = (("datasets", self.datasets, datasets), ("scene_names", self.scene_names, scenes))
        return [f"--data.{option} {name}" for option, asked, there in given for name in set(asked or ()) - there]

    def __call__(self, scenes: Sequence[Scene]) -> tuple[list[Scene], int]:
        """(scenes with the questions left, without those that have none; how many questions were left out).

        Questions of scenes that are not chosen don't count as left out.
        """
        chosen = [scene for scene in scenes if self.is_chosen(scene.name)]
        asked = sum(len(scene.questions) for scene in chosen)
        if self.question_types:
            chosen = [
                replace(scene, questions=tuple(q for q in scene.questions if q.question_type in self.question_types))
                for scene in chosen
            ]
        if self.subset is not None:
            ids = sorted((scene.name, question.id) for scene in chosen for question in scene.questions)
            drawn = set(random.Random(self.seed).sample(ids, min(self.subset, len(ids))))
            chosen = [
                replace(scene, questions=tuple(q for q in scene.questions if (scene.name, q.id) in drawn))
                for scene in chosen
            ]
        kept = [scene for scene in chosen if scene.questions]
        return kept, asked - sum(len(scene.questions) for scene in kept)
