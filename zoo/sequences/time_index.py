"""Time indices map the temporal patches of videos to positions on the temporal axis of mRoPE."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from zoo.cameras import Cameras
from zoo.cameras.poses import PoseMeasure, path_length, pose_distances
from zoo.configuration import Configurable
from zoo.errors import InputError, check_choice

Seconds = Literal["nominal", "clip", "sampled_fps"]


class TemporalPatches(NamedTuple):
    """The N temporal patches of a batch of videos, concatenated.

    Attributes:
        video: Number of each patch's video, from 0.
        step: 0, 1, 2, ... within the video.
        seconds: Seconds per temporal patch of that video.
        tokens_per_second: Positions per second.
        frame: Index of the raw video frame, averaged over the merged frames. None if unknown.
        world_to_camera: Poses. None without cameras.
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
    """Maps temporal patches to integer positions from 0, relative to the start of each video.

    Attributes:
        seconds_per_grid: Nominal seconds per temporal patch, used if the caller passes none.
        seconds: Which seconds per temporal patch the model passes, see `TimestampIndex`.
        constant: All views of a video share one position, so RoPE on the T section is the identity between them.
        per_span: Positions count from the start of each span of visual tokens instead of the start of the video. This
            differs where each temporal patch is a span (Qwen3-VL).
        is_sequential: Each token of a sequence has the next position, visual tokens included, on all axes.
        requires_frames: The index reads the raw frame indices.
        requires_cameras: The index reads the poses.
        uses_lengths: The index depends on the unit of the poses.
    """

    seconds_per_grid: int | float = 1.0
    seconds: Seconds = "nominal"
    constant: bool = False
    per_span: bool = False
    is_sequential: bool = False
    requires_frames: bool = False
    requires_cameras: bool = False
    uses_lengths: bool = False

    @abstractmethod
    def __call__(self, steps: TemporalPatches) -> Int[Tensor, " N"]:
        """Compute the position of each temporal patch.

        Raises:
            ValueError: `steps` lacks the frames or poses that this index requires.
        """


# ---- Time indices computed from seconds, steps and frame numbers ----------------------------------------------------

MIN_RANGE = 1e-4  # radians, meters or frames; a smaller range of values is rounding error and is not spread


class TimestampIndex(TimeIndex):
    """floor(step * tokens_per_second * seconds_per_grid), as in Qwen2.5-VL.

    Args:
        seconds_per_grid: Nominal seconds per temporal patch, independent of the clip's actual frame rate. The released
            Spatial-MLLM checkpoints are evaluated with 1.0 and were trained with 0.5.
        seconds: `nominal`: `seconds_per_grid`. `clip`: computed from the times of the clip's frames. `sampled_fps`: 2 /
            (n / N fps) for n of the N frames of a video, as in qwen-vl-utils. docs/positions.md compares them.

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
        # float32 and this order of products give the same floor as in the released models' training
        return (steps.step * steps.seconds * steps.tokens_per_second).long()


class BackboneIndex(TimestampIndex):
    """The backbone's own time component, with these seconds if it counts seconds (Qwen2.5-VL).

    Qwen3-VL and Qwen3.5 have the time of frames as text and keep their `SpanIndex`, so an evaluation protocol can name
    seconds for any backbone. Arguments as in `TimestampIndex`.
    """


class StepIndex(TimeIndex):
    """One position per temporal patch, as in Qwen2-VL. Equals `TimestampIndex` at 0.5 seconds per temporal patch."""

    def __call__(self, steps: TemporalPatches) -> Int[Tensor, " N"]:
        return steps.step


class ConstantIndex(TimeIndex):
    """Position 0 for all views of a video, for static scenes. Consecutive images start at consecutive positions."""

    constant = True

    def __call__(self, steps: TemporalPatches) -> Int[Tensor, " N"]:
        return torch.zeros_like(steps.step)


class SpanIndex(TimeIndex):
    """The position where each temporal patch starts in the sequence, as in Qwen3-VL, whose prompt has time as text."""

    per_span = True

    def __call__(self, steps: TemporalPatches) -> Int[Tensor, " N"]:
        return torch.zeros_like(steps.step)


class SequentialIndex(SpanIndex):
    """Positions 0, 1, 2, ... over the whole sequence, for a decoder with one axis of positions, as in LLaVA."""

    is_sequential = True


class SpreadIndex(TimeIndex):
    """Scales a value per temporal patch to 0 ... span within each video, and rounds.

    Args:
        span: Position of the largest value, at least 1. The smallest is at 0. If all values of a video are equal, all
            positions are 0.
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
        # 1e-6 rounds halves up despite rounding errors, because uniform motion gives exact halves
        return (self.spread(values, known) + 1e-6).round().long()

    def spread(self, values: Float[Tensor, "*B N"], known: Bool[Tensor, "*B N"] | None = None) -> Float[Tensor, "*B N"]:
        """Scale the values of each video to 0 ... span, in float64.

        Args:
            values: Values of the temporal patches.
            known: The values that count. The others become 0. None is all.
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
        span: Position of the last temporal patch. The first is at 0.

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


# ---- Time indices computed from camera poses ------------------------------------------------------------------------


class PoseTimeIndex(SpreadIndex):
    """Base class of time indices computed from poses. `pose_distances` describes the arguments.

    A temporal patch without a camera takes the value of the last one before it with a camera, or of the first one with
    a camera.
    """

    requires_cameras = True

    def __init__(
        self, measure: PoseMeasure = "euclidean", translation_weight: int | float = 1.0, span: int = 32
    ) -> None:
        super().__init__(span)
        self.measure, self.translation_weight = measure, translation_weight
        # with these measures the unit cancels, because positions are scaled to the span
        self.uses_lengths = measure not in ("rotation", "center")

    @abstractmethod
    def pose_values(
        self, world_to_camera: Float[Tensor, "B S 4 4"], has_camera: Bool[Tensor, "B S"]
    ) -> Float[Tensor, "B S"]:
        """Compute the value of each pose, without waiting for a GPU. Values of invalid cameras are ignored."""

    def values(self, steps: TemporalPatches) -> Float[Tensor, " N"]:
        if steps.world_to_camera is None or steps.has_camera is None:
            raise ValueError(f"{type(self).__name__} requires cameras: pass one per temporal patch")
        return self.patch_values(steps.world_to_camera[None], steps.has_camera[None])[0]

    def patch_values(
        self, world_to_camera: Float[Tensor, "B S 4 4"], has_camera: Bool[Tensor, "B S"]
    ) -> Float[Tensor, "B S"]:
        """Compute the value of each temporal patch without waiting for a GPU. 0 in a video without any camera."""
        values = self.pose_values(world_to_camera, has_camera).gather(1, last_valid(has_camera))
        return values.where(has_camera.any(1, keepdim=True), 0.0)


class PoseDistanceIndex(PoseTimeIndex):
    """Pose distance to a reference view, scaled to 0 ... span.

    The index is not injective: two views at the same distance on either side of the reference share a position, and so
    do a rotation and a translation of equal size.

    Args:
        measure: The distance, from the angle w (radians) and the center distance t (meters times
            translation_weight): `rotation` w, `center` t, `euclidean` sqrt(w^2 + t^2), `sum` w + t, `log` the norm of
            the logarithm of the relative pose.
        translation_weight: Radians per meter.
        span: Position of the view farthest from the reference, which is at 0.
        reference: The `first` or `middle` view with a camera, or the `medoid`, the view closest to the others.

    Example:
        >>> import torch
        >>> step, poses = torch.arange(4), torch.eye(4).repeat(4, 1, 1)
        >>> poses[:, 0, 3] = torch.tensor([0.0, 1.0, 2.0, 0.0])  # there and back, in meters
        >>> steps = TemporalPatches(
        ...     torch.zeros_like(step), step, torch.ones(4), 2, world_to_camera=poses, has_camera=step >= 0
        ... )
        >>> PoseDistanceIndex(span=8)(steps).tolist(), PathLengthIndex(span=8)(steps).tolist()
        ([0, 4, 8, 0], [0, 2, 4, 8])
    """

    def __init__(
        self,
        measure: PoseMeasure = "euclidean",
        translation_weight: int | float = 1.0,
        span: int = 32,
        reference: Literal["first", "middle", "medoid"] = "first",
    ) -> None:
        super().__init__(measure, translation_weight, span)
        self.reference = reference

    def pose_values(
        self, world_to_camera: Float[Tensor, "B S 4 4"], has_camera: Bool[Tensor, "B S"]
    ) -> Float[Tensor, "B S"]:
        batch, count = has_camera.shape
        intrinsics = torch.eye(3, device=world_to_camera.device).expand(batch, count, 3, 3)
        index = torch.arange(count, device=has_camera.device).expand(batch, count).where(has_camera, -1)
        view = Cameras.trusted(world_to_camera, intrinsics, index).reference_view(self.reference)
        reference = world_to_camera[torch.arange(batch, device=view.device), view][:, None]
        return pose_distances(world_to_camera, reference, self.measure, self.translation_weight)


class PathLengthIndex(PoseTimeIndex):
    """Length of the camera path up to each view, scaled to 0 ... span: time measured by camera motion.

    The index never decreases, so a view that is seen twice has two positions. Noise in the poses lengthens the path
    while the camera stands still.

    Args:
        measure: The length of one step of the path, from the angle w (radians) and the center distance t (meters
            times translation_weight): `rotation` w, `center` t, `euclidean` sqrt(w^2 + t^2), `sum` w + t, `log` the
            norm of the logarithm of the relative pose.
        translation_weight: Radians per meter.
        span: Position of the last view.
    """

    def pose_values(
        self, world_to_camera: Float[Tensor, "B S 4 4"], has_camera: Bool[Tensor, "B S"]
    ) -> Float[Tensor, "B S"]:
        last = last_valid(has_camera)  # an invalid pose repeats the last valid one
        poses = world_to_camera[torch.arange(len(last), device=last.device)[:, None], last]
        return torch.stack([path_length(each, self.measure, self.translation_weight) for each in poses])


def last_valid(has_camera: Bool[Tensor, "B S"]) -> Int[Tensor, "B S"]:
    """Return the index of the last valid pose up to each pose, or of the first valid one if there is none before."""
    number = torch.arange(has_camera.shape[1], device=has_camera.device).where(has_camera, -1)
    last = number.cummax(1).values
    return torch.where(last < 0, has_camera.int().argmax(1, keepdim=True), last)
