"""Several datasets to train on, in the proportions that one wants."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from datamodules.scenes import Scene
from datamodules.sources.base import Chosen, SceneSource, Split
from datamodules.sources.conversations import Conversations
from zoo.errors import InputError

if TYPE_CHECKING:
    from datamodules.filters import QuestionFilter


@dataclass
class Part:
    """One dataset of a mixture: a file of conversations or any other source.

    Args:
        path: conversations, see `Conversations`; `data.jsonl%25` takes a fixed quarter of its rows.
        videos: the folder of their videos.
        source: another source instead.
        weight: its share of the scenes that training draws, beside the other parts' weights; null in all parts:
            each scene once.
    """

    path: str | None = None
    videos: str | None = None
    source: SceneSource | None = None
    weight: float | None = None


class Mixture(SceneSource):
    """A mixture to train on, and what it is validated and tested on.

    An epoch shows every scene of every part. Where weights ask for more of a part, its scenes come several times, and
    each time with other ones of their questions, so far as they go.

    Args:
        parts: such as `[{path: a.jsonl, weight: 0.5}, {path: b.jsonl%25, weight: 0.5}]`.
        evaluation: the source of the validation and test splits.
        seed: of the draw of scenes that come once more than others.

    Raises InputError for parts that make no sense.
    """

    def __init__(self, parts: list[Part], evaluation: SceneSource | None = None, seed: int = 0) -> None:
        super().__init__()
        if not parts:
            raise InputError("Mixture: no parts: give at least one, such as {path: a.jsonl, weight: 0.5}")
        for part in parts:
            if (part.path is None) == (part.source is None):
                raise InputError(f"Mixture: a part has either a path or a source, not {part}")
            if part.videos is not None and part.path is None:
                raise InputError(f"Mixture: `videos` belongs to a part with a path, not to {part}")
            if part.weight is not None and not part.weight > 0:
                raise InputError(f"Mixture: a weight must be above 0, not {part.weight}: leave the part out")
        given = [part.weight for part in parts if part.weight is not None]
        if given and len(given) < len(parts):
            raise InputError(
                f"Mixture: {len(given)} of {len(parts)} parts have a weight: give all of them one, or none"
            )
        self.weights = given or None
        self.sources = [part.source or Conversations(str(part.path), part.videos) for part in parts]
        self.evaluation, self.seed = evaluation, seed
        self.benchmark = (evaluation or self.sources[0]).benchmark

    def prepare(self) -> None:
        for source in (*self.sources, *([self.evaluation] if self.evaluation else [])):
            source.prepare()

    def scenes(self, split: Split) -> list[Scene]:
        if split != "train":
            if self.evaluation is None:
                raise ValueError(f"Mixture: there is no {split} split: name its source as `evaluation`")
            scenes, self.missing = self.evaluation.scenes(split), self.evaluation.missing
            return scenes
        return self._weighted([source.scenes("train") for source in self.sources])

    def filtered_split(self, split: Split, chosen: QuestionFilter) -> Chosen:
        """The weights are those of what the filter leaves; its `subset` is drawn last."""
        if split != "train":
            return super().filtered_split(split, chosen)
        parts = [source.filtered_split("train", replace(chosen, subset=None)) for source in self.sources]
        scenes, cut = chosen(self._weighted([part.scenes for part in parts], chosen.described()))
        return Chosen(scenes, cut + sum(part.left_out for part in parts), [n for part in parts for n in part.names])

    def _weighted(self, parts: Sequence[list[Scene]], described: str = "") -> list[Scene]:
        """The scenes of all parts, those of a part as often as its weight asks for."""
        self.missing = {}
        for source in self.sources:
            for name, counts in source.missing.items():
                self.missing.setdefault(name, Counter()).update(counts)
        if self.weights is None:
            return [scene for part in parts for scene in part]
        if empty := [i for i, part in enumerate(parts) if not part]:
            raise ValueError(f"Mixture: part {empty[0] + 1} has no scene whose video is there{described}")
        longest = max(len(part) / weight for part, weight in zip(parts, self.weights, strict=True))
        wanted = [round(longest * weight) for weight in self.weights]
        return [scene for part, n in zip(parts, wanted, strict=True) for scene in resample_scenes(part, n, self.seed)]


def resample_scenes(scenes: Sequence[Scene], count: int, seed: int) -> list[Scene]:
    """`count` scenes, each of `scenes` as often as any other but for one; a repeated one deals out its questions."""
    times, rest = divmod(count, len(scenes))
    once_more = set(random.Random(seed).sample(range(len(scenes)), rest))
    return [copy for i, scene in enumerate(scenes) for copy in _dealt(scene, times + (i in once_more))]


def _dealt(scene: Scene, times: int) -> list[Scene]:
    hands = min(times, len(scene.questions))
    return [replace(scene, questions=scene.questions[i % hands :: hands]) for i in range(times)]
