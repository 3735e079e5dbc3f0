"""Random frames for training."""

from __future__ import annotations

import random

from datamodules.samplers.base import FrameSampler, SceneView
from zoo.seed import resolve_seed


class RandomSampler(FrameSampler):
    """One random frame from each of n equal segments of the video, drawn anew in every epoch (TSN, arXiv 1608.00859).

    The draw depends on the seed, the epoch and the video's name only, so a resumed run draws the same frames.

    Args:
        seed: Seed of the draw; null is the run's.
        candidates: Number of candidates at even steps; null is all frames.
    """

    def __init__(self, seed: int | None = None, candidates: int | None = None) -> None:
        self.seed, self.candidates = resolve_seed(seed), candidates

    @property
    def varies_by_epoch(self) -> bool:
        """See `FrameSampler`."""
        return True

    def choose(self, scene: SceneView, n: int) -> list[int]:
        """One place per segment."""
        total = len(scene.pool)
        if total <= n:
            return list(range(total))
        draw = random.Random(f"{self.seed}/{scene.epoch}/{scene.video.path.name}")
        edges = [round(i * total / n) for i in range(n + 1)]
        return [draw.randrange(start, stop) for start, stop in zip(edges, edges[1:], strict=False)]
