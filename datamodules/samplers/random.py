"""Frames drawn anew each epoch, for training."""

from __future__ import annotations

import random

from torch import Tensor

from datamodules.samplers.base import FrameSampler
from datamodules.video import Video


class RandomSampler(FrameSampler):
    """One frame at random from each of n equal stretches of the video: other views of the scene every epoch.

    The draw depends on the seed, the epoch and the video's name alone, so that a resumed run draws the same.

    Args:
        seed: another seed draws other frames.
    """

    def __init__(self, seed: int = 0) -> None:
        self.seed = seed

    def choose(self, video: Video, n: int, world_to_camera: Tensor | None, epoch: int) -> list[int]:
        total = video.num_frames
        if total <= n:
            return list(range(total))
        draw = random.Random(f"{self.seed}/{epoch}/{video.path.name}")
        edges = [round(i * total / n) for i in range(n + 1)]
        return [draw.randrange(start, stop) for start, stop in zip(edges, edges[1:], strict=False)]
