"""The seam of time indices: the temporal patches of videos, and what maps them to positions."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, Literal, NamedTuple

from jaxtyping import Bool, Float, Int
from torch import Tensor

from zoo.configuration import Configurable

Seconds = Literal["nominal", "clip", "sampled_fps"]


class TemporalPatches(NamedTuple):
    """The N temporal patches of a batch of videos, concatenated.

    Attributes:
        video: Number of the video of each, from 0.
        step: 0, 1, 2, ... within the video.
        seconds: Seconds per temporal patch of that video.
        tokens_per_second: Positions per second.
        frame: Index of the raw video frame, the mean of the merged frames; None if unknown.
        world_to_camera: Poses; None without cameras.
        has_camera: Which of the poses are valid.
    """

    video: Int[Tensor, " N"]
    step: Int[Tensor, " N"]
    seconds: Float[Tensor, " N"]
    tokens_per_second: int | float
    frame: Float[Tensor, " N"] | None = None
    world_to_camera: Float[Tensor, "N 4 4"] | None = None
    has_camera: Bool[Tensor, " N"] | None = None

    def only(self, mask: Bool[Tensor, " N"]) -> TemporalPatches:
        """Select temporal patches by a mask."""
        selected: dict[str, Any] = {name: x[mask] for name, x in self._asdict().items() if isinstance(x, Tensor)}
        return self._replace(**selected)


class TimeIndex(Configurable, ABC):
    """Map temporal patches to integer positions from 0, relative to the start of each video.

    Attributes:
        seconds_per_grid: Nominal seconds per temporal patch, if the caller passes none.
        seconds: Whose seconds per temporal patch the model passes, see `TimestampIndex`.
        constant: All views of a video share one position, so RoPE on the T section is the identity between them.
        per_span: Positions count from the start of each span of visual tokens, not from that of the video; they differ
            where each temporal patch is a span of its own (Qwen3-VL).
        requires_frames: Reads the raw frame indices.
        requires_cameras: Reads the poses.
        uses_lengths: Depends on the unit of the poses.
    """

    seconds_per_grid: int | float = 1.0
    seconds: Seconds = "nominal"
    constant: bool = False
    per_span: bool = False
    requires_frames: bool = False
    requires_cameras: bool = False
    uses_lengths: bool = False

    @abstractmethod
    def __call__(self, steps: TemporalPatches) -> Int[Tensor, " N"]:
        """Compute the position of each temporal patch.

        Raises:
            ValueError: `steps` lack the frames or poses that this index requires.
        """
