"""Time indices computed from seconds, steps and frame numbers."""

from __future__ import annotations

from abc import abstractmethod

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from zoo.errors import InputError, check_choice
from zoo.sequences.time_index.base import Seconds, TemporalPatches, TimeIndex

MIN_RANGE = 1e-4  # radians, meters or frames: a smaller range of values is rounding error, and is not spread


class TimestampIndex(TimeIndex):
    """floor(step * tokens_per_second * seconds_per_grid), as in Qwen2.5-VL.

    Args:
        seconds_per_grid: Nominal seconds per temporal patch, whatever the actual rate of the clip. The released
            Spatial-MLLM checkpoints are evaluated with 1.0 and were trained with 0.5.
        seconds: `nominal`; those of the `clip`, from its frames' times; or by the `sampled_fps`, 2 / (n / N fps) for n
            of the N frames of a video, as in qwen-vl-utils. docs/positions.md compares them.

    Example:
        >>> import torch
        >>> step = torch.arange(4)
        >>> steps = TemporalPatches(torch.zeros_like(step), step, torch.full((4,), 0.75), tokens_per_second=2)
        >>> TimestampIndex()(steps).tolist(), StepIndex()(steps).tolist(), ConstantIndex()(steps).tolist()
        ([0, 1, 3, 4], [0, 1, 2, 3], [0, 0, 0, 0])
    """

    def __init__(self, seconds_per_grid: int | float = 1.0, seconds: Seconds = "nominal") -> None:
        check_choice("seconds", seconds, Seconds)
        self.seconds_per_grid = seconds_per_grid
        self.seconds = seconds

    def __call__(self, steps: TemporalPatches) -> Int[Tensor, " N"]:
        # float32 and this order of the products, so that the floor is the one of the released models' training
        return (steps.step * steps.seconds * steps.tokens_per_second).long()


class BackboneIndex(TimestampIndex):
    """The backbone's own time component; these seconds where it counts seconds (Qwen2.5-VL).

    Qwen3-VL and Qwen3.5 have the time of the frames as text, and keep their `SpanIndex`: an evaluation protocol names
    seconds for any backbone. Arguments as `TimestampIndex`.
    """


class StepIndex(TimeIndex):
    """One position per temporal patch, as in Qwen2-VL; equals `TimestampIndex` at 0.5 seconds per temporal patch."""

    def __call__(self, steps: TemporalPatches) -> Int[Tensor, " N"]:
        return steps.step


class ConstantIndex(TimeIndex):
    """Position 0 for all views of a video, for static scenes. Consecutive stills start at consecutive positions."""

    constant = True

    def __call__(self, steps: TemporalPatches) -> Int[Tensor, " N"]:
        return torch.zeros_like(steps.step)


class SpanIndex(TimeIndex):
    """The position where each temporal patch starts in the sequence, as in Qwen3-VL, whose prompt has time as text."""

    per_span = True

    def __call__(self, steps: TemporalPatches) -> Int[Tensor, " N"]:
        return torch.zeros_like(steps.step)


class SpreadIndex(TimeIndex):
    """Scale a value per temporal patch to 0 ... span within each video, and rounds.

    Args:
        span: Position of the largest value, at least 1; the smallest is at 0. If all values of a video are equal,
            all positions are 0.
    """

    def __init__(self, span: int = 32) -> None:
        if span < 1:
            raise InputError(f"span={span}: positions range from 0 to span, so it must be at least 1")
        self.span = span

    @abstractmethod
    def values(self, steps: TemporalPatches) -> Float[Tensor, " N"]:
        """Compute the value of each temporal patch of one video."""

    def __call__(self, steps: TemporalPatches) -> Int[Tensor, " N"]:
        positions = torch.zeros_like(steps.step)
        for video in steps.video.unique():
            mask = steps.video == video
            positions[mask] = self.positions(self.values(steps.only(mask)))
        return positions

    def positions(
        self, values: Float[Tensor, "*B N"], known: Bool[Tensor, "*B N"] | None = None
    ) -> Int[Tensor, "*B N"]:
        """Spread and round the values of each video, see `spread`."""
        # 1e-6 rounds halves up despite rounding errors: uniform motion gives exact halves
        return (self.spread(values, known) + 1e-6).round().long()

    def spread(self, values: Float[Tensor, "*B N"], known: Bool[Tensor, "*B N"] | None = None) -> Float[Tensor, "*B N"]:
        """Scale the values of each video to 0 ... span, in float64.

        Args:
            values: Of the temporal patches.
            known: Those that count; the others are 0. None is all.
        """
        values = values.double()
        known = torch.ones_like(values, dtype=torch.bool) if known is None else known
        least = values.masked_fill(~known, torch.inf).amin(-1, keepdim=True)
        values = (values - least).masked_fill(~known, 0.0)
        largest = values.amax(-1, keepdim=True)
        return values / largest.clamp(min=MIN_RANGE) * self.span * (largest >= MIN_RANGE)


class FrameNumberIndex(SpreadIndex):
    """Raw frame index scaled to 0 ... span, so temporal patches that are far apart in the clip stay far apart.

    Merged frames are represented by their mean index.

    Args:
        span: Position of the last temporal patch; the first is at 0.

    Example:
        >>> import torch
        >>> step = torch.arange(3)
        >>> frames = torch.tensor([0.0, 10.0, 40.0])
        >>> steps = TemporalPatches(torch.zeros_like(step), step, torch.ones(3), 2, frame=frames)
        >>> FrameNumberIndex(span=8)(steps).tolist()
        [0, 2, 8]
    """

    requires_frames = True

    def values(self, steps: TemporalPatches) -> Float[Tensor, " N"]:
        if steps.frame is None:
            raise ValueError("FrameNumberIndex requires raw frame indices: pass frame_indices, one list per video")
        return steps.frame
