"""Which frames of a video a model sees."""

from __future__ import annotations

from abc import ABC, abstractmethod

from jaxtyping import Float
from torch import Tensor

from datamodules.video import Video

FRAMES_PER_GRID_STEP = 2  # Qwen2.5-VL merges two consecutive frames into one step of its token grid


class FrameSampler(ABC):
    """Chooses frames of a video, from its length alone or from its cameras as well.

    To add one: a file in this folder with `choose`, a line in `__init__.py`, a test. Its options are the
    arguments of its `__init__`, so that a config can set them.
    """

    def __call__(
        self, video: Video, n: int, world_to_camera: Float[Tensor, "N 4 4"] | None = None, epoch: int = 0
    ) -> list[int]:
        """Sorted frame indices, an even number of them, near n.

        A video with too few frames repeats its last one, which shows as repeated indices.

        Args:
            world_to_camera: the pose of each raw frame, where the data has them.
            epoch: of training; a sampler that draws at random draws anew in each.

        Raises:
            ValueError: n < 2, or the sampler needs poses and there are none.
        """
        if n < FRAMES_PER_GRID_STEP:
            raise ValueError(f"{n} frames of a video are too few: at least {FRAMES_PER_GRID_STEP} are needed")
        indices = self.choose(video, n, world_to_camera, epoch)
        missing = max(0, self.count(n) - len(indices))
        odd = (len(indices) + missing) % FRAMES_PER_GRID_STEP
        return indices + [indices[-1]] * (missing + odd)

    def count(self, n: int) -> int:
        """How many frames n asks for; a sampler that rounds it overrides this."""
        return n

    @abstractmethod
    def choose(self, video: Video, n: int, world_to_camera: Float[Tensor, "N 4 4"] | None, epoch: int) -> list[int]:
        """The chosen indices, sorted, at least one; fewer than asked for where the video has no more."""
