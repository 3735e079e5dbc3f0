"""Frames drawn anew each epoch, for training."""

from __future__ import annotations

import random

from datamodules.samplers.base import FrameSampler, SceneView


class RandomSampler(FrameSampler):
    """One frame at random from each of n equal stretches of the video: other views of the scene every epoch.

    The draw depends on the seed, the epoch and the video's name alone, so that a resumed run draws the same.

    Args:
        seed: another seed draws other frames.
        candidates: choose among so many frames at even steps; null is all.
    """

    def __init__(self, seed: int = 0, candidates: int | None = None) -> None:
        self.seed, self.candidates = seed, candidates

    def choose(self, scene: SceneView, n: int) -> list[int]:
        total = len(scene.pool)
        if total <= n:
            return list(range(total))
        draw = random.Random(f"{self.seed}/{scene.epoch}/{scene.video.path.name}")
        edges = [round(i * total / n) for i in range(n + 1)]
        return [draw.randrange(start, stop) for start, stop in zip(edges, edges[1:], strict=False)]
