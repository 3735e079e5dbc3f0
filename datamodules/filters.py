"""Selection of a dataset's scenes and questions."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from datamodules.scenes import Scene, select_questions
from datamodules.sources.base import Missing
from zoo.errors import InputError


@dataclass(frozen=True)
class QuestionFilter:
    """Keep the questions that meet all conditions; None is no condition.

    Args:
        datasets: First parts of the scenes' names.
        question_types: Question types of the benchmark.
        scene_names: "<dataset>/<scene_name>" or "<scene_name>"; a string is the path of a text file with one name per
            line.
        subset: Number of questions drawn from those that meet the other conditions; all if there are fewer.
        seed: Seed of that draw, which depends on it and the questions' ids alone.

    Raises:
        InputError: The subset is below 1, or the file of names is absent.
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
        """Return the conditions as text for an error message; empty without conditions."""
        given = {name: value for name, value in asdict(self).items() if value and name != "seed"}
        return "".join(f", with {name}={value}" for name, value in given.items())

    @property
    def option(self) -> str:
        """The option that chose among the questions of the scenes: `subset`, else `question_types`."""
        if self.subset is not None:
            return f"--data.subset {self.subset}"
        return f"--data.question_types [{','.join(self.question_types or ())}]"

    def left_out(self, names: Sequence[str], num_questions: int) -> Iterator[str]:
        """Yield what the filter leaves out of a split as lines of text.

        Args:
            names: All scenes of the split.
            num_questions: Questions of the others that `option` leaves out.
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
        """Return the number of matching questions of each missing scene that has any; ignores `subset`."""
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
            The scenes that keep questions, and the number of questions that `option` left out.
        """
        chosen = [scene for scene in scenes if self.is_chosen(scene.name)]
        total = _count(chosen)
        if kinds := self.question_types:
            meets = [[i for i, q in enumerate(scene.questions) if q.question_type in kinds] for scene in chosen]
            chosen = [select_questions(scene, own) for scene, own in zip(chosen, meets, strict=True)]
        if self.subset is not None:
            total = _count(chosen)
            # by place: a mixture repeats scenes
            asked = sorted((s.name, q.id, n, i) for n, s in enumerate(chosen) for i, q in enumerate(s.questions))
            drawn: dict[int, list[int]] = {}
            for _, _, number, i in random.Random(self.seed).sample(asked, min(self.subset, total)):
                drawn.setdefault(number, []).append(i)
            chosen = [select_questions(chosen[number], sorted(drawn[number])) for number in sorted(drawn)]
        return [scene for scene in chosen if scene.questions], total - _count(chosen)


def _count(scenes: Sequence[Scene]) -> int:
    return sum(len(scene.questions) for scene in scenes)
