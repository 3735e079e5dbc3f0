"""Train on several datasets with sampling weights."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from copy import copy
from dataclasses import dataclass, replace

import numpy as np

from datamodules.scenes import Scene, select_questions
from datamodules.sources.base import FilteredSplit, QuestionFilter, SceneSource, Split
from datamodules.sources.conversations import Conversations
from zoo.errors import InputError
from zoo.seed import resolve_seed


@dataclass
class Part:
    """One dataset of a mixture: a file of conversations or any other source.

    Args:
        path: File of conversations, see `Conversations`. `data.jsonl%25` takes a fixed quarter of its rows.
        videos: Folder of the videos.
        cameras: Folder of cameras and depth by scene.
        source: Another source, instead of `path`.
        datasets: Use only these datasets of the file, see `Conversations`.
        question_types: Use only these question types of the file.
        weight: Relative share of the training questions. Without weights, each question is used once per epoch.
    """

    path: str | None = None
    videos: str | None = None
    cameras: str | None = None
    source: SceneSource | None = None
    datasets: list[str] | None = None
    question_types: list[str] | None = None
    weight: float | None = None


class Mixture(SceneSource):
    """A weighted mixture of training datasets, and a source of the validation and test splits.

    An epoch contains every question of every part. Questions of a part with a larger weight are repeated.

    Args:
        parts: List of parts, such as `[{path: a.jsonl, weight: 0.5}, {path: b.jsonl%25, weight: 0.5}]`.
        evaluation: Source of the validation and test splits.
        seed: Seed that decides which questions are repeated once more than others. null uses the run's seed.

    Raises:
        InputError: The parts contradict each other.
    """

    def __init__(self, parts: list[Part], evaluation: SceneSource | None = None, seed: int | None = None) -> None:
        super().__init__()
        if not parts:
            raise InputError("Mixture: no parts: list at least one, such as {path: a.jsonl, weight: 0.5}")
        for part in parts:
            of_path = part.videos or part.cameras or part.datasets or part.question_types
            if (part.path is None) == (part.source is None) or (of_path and part.source):
                raise InputError(f"Mixture: a part has either a path (and `videos` etc.) or a source, not {part}")
            if part.weight is not None and not part.weight > 0:
                raise InputError(f"Mixture: a weight must be above 0, not {part.weight}: leave the part out")
        weights = [part.weight for part in parts if part.weight is not None]
        if weights and len(weights) < len(parts):
            raise InputError(f"Mixture: {len(weights)} of {len(parts)} parts have a weight: set all weights, or none")
        self.weights = weights or None
        self.sources = [
            part.source
            or Conversations(
                str(part.path),
                part.videos,
                part.cameras,
                datasets=part.datasets,
                question_types=part.question_types,
            )
            for part in parts
        ]
        self.evaluation, self.seed = evaluation, resolve_seed(seed)
        self.benchmark = (evaluation or self.sources[0]).benchmark

    def prepare(self) -> None:
        """Prepare all parts and the evaluation source."""
        self.prepare_splits(("train", "test"))

    def for_frames(self, num_frames: int) -> Mixture:
        """Return this mixture, with the evaluation source for `num_frames` frames per video."""
        made = copy(self)
        made.num_frames = num_frames
        made.evaluation = self.evaluation and self.evaluation.for_frames(num_frames)
        return made

    def prepare_splits(self, splits: Collection[Split]) -> None:
        """Prepare the parts for training, and the evaluation source for the other splits.

        Raises:
            FileNotFoundError: Files are missing. The message names those of all sources.
        """
        sources = [*self.sources] if "train" in splits else []
        if self.evaluation is not None and set(splits) - {"train"}:
            sources.append(self.evaluation)
        absent = []
        for source in sources:
            try:
                source.prepare()
            except FileNotFoundError as error:
                absent.append(str(error))
        if absent:
            raise FileNotFoundError("; ".join(absent))

    def scenes(self, split: Split) -> list[Scene]:
        """Return the weighted scenes for training, or the scenes of the evaluation source."""
        if split != "train":
            if self.evaluation is None:
                raise ValueError(f"Mixture: no {split} split: set its source as `evaluation`")
            scenes, self.missing = self.evaluation.scenes(split), self.evaluation.missing
            return scenes
        return self._weighted([source.scenes("train") for source in self.sources])

    def filtered_split(self, split: Split, chosen: QuestionFilter) -> FilteredSplit:
        """Filter each part, apply the weights, then draw the filter's `subset`."""
        if split != "train":
            return super().filtered_split(split, chosen)
        parts = [source.filtered_split("train", replace(chosen, subset=None)) for source in self.sources]
        scenes, num_removed = chosen(self._weighted([part.scenes for part in parts], chosen.described()))
        num_removed += sum(part.num_removed for part in parts)
        return FilteredSplit(scenes, num_removed, [name for part in parts for name in part.names])

    def _weighted(self, parts: Sequence[list[Scene]], described: str = "") -> list[Scene]:
        """Return the scenes of all parts, repeated in proportion to their weights."""
        self.missing = {}
        for source in self.sources:
            for name, missing in source.missing.items():
                self.missing.setdefault(name, Counter()).update(missing)
        if self.weights is None:
            return [scene for part in parts for scene in part]
        if empty := [i for i, part in enumerate(parts) if not part]:
            raise ValueError(f"Mixture: part {empty[0] + 1} has no scene with a video, and no text{described}")
        sizes = [sum(len(scene.questions) for scene in part) for part in parts]
        longest = max(size / weight for size, weight in zip(sizes, self.weights, strict=True))
        counts = [round(longest * weight) for weight in self.weights]
        repeated = (repeat_questions(part, n, self.seed) for part, n in zip(parts, counts, strict=True))
        return [scene for part in repeated for scene in part]


def repeat_questions(scenes: list[Scene], count: int, seed: int) -> list[Scene]:
    """Repeat the questions of scenes evenly until there are `count`.

    Args:
        scenes: Scenes with questions.
        count: Number of questions to reach, at least the present number.
        seed: Seed that decides which questions are repeated once more than others.
    """
    counts = np.array([len(scene.questions) for scene in scenes])
    repeats, rest = divmod(count, int(counts.sum()))
    drawn = np.sort(np.random.default_rng(seed).choice(counts.sum(), rest, replace=False))
    ends = np.cumsum(counts)
    parts = np.split(drawn, np.searchsorted(drawn, ends[:-1]))
    once_more = [
        select_questions(scene, (part - first).tolist())
        for scene, part, first in zip(scenes, parts, ends - counts, strict=True)
        if len(part)
    ]
    return scenes * repeats + once_more
