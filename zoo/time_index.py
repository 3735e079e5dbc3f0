"""What the time of a video's token means: the T of mRoPE's position ids, which RoPE turns by.

Position ids are integers, as in the stock model: what comes out as a fraction is rounded (`TimestampIndex` takes the
floor, as Qwen2.5-VL does), so views less than a position apart may share one.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from zoo.cameras import Cameras
from zoo.errors import InputError
from zoo.pose_distances import PoseMeasure, path_length, pose_distances

STILL = 1e-4  # radians or meters (or frames): what differs by less is rounding, not to be spread over a range


class TemporalPatches(NamedTuple):
    """The N grid steps of the videos of a batch, one video after the other: what a time index may go by.

    Attributes:
        video: the video of each, from 0.
        step: 0, 1, 2, ... in its video.
        seconds: seconds a grid step of that video.
        tokens_per_second: positions a second.
        frame: the raw video frame that it shows, a mean over those merged into it; None where nobody said.
        world_to_camera: its pose; None where there are no cameras.
        has_camera: whether that means something.
    """

    video: Int[Tensor, " N"]
    step: Int[Tensor, " N"]
    seconds: Float[Tensor, " N"]
    tokens_per_second: int | float
    frame: Float[Tensor, " N"] | None = None
    world_to_camera: Float[Tensor, "N 4 4"] | None = None
    has_camera: Bool[Tensor, " N"] | None = None

    def only(self, chosen: Bool[Tensor, " N"]) -> TemporalPatches:
        """Some of the steps."""
        each: dict[str, Any] = {name: x[chosen] for name, x in self._asdict().items() if isinstance(x, Tensor)}
        return self._replace(**each)


class TimeIndex(ABC):
    """Maps grid steps to positions in time, integers from 0, relative to the start of each video.

    Attributes:
        seconds_per_grid: the nominal seconds of a grid step, where the caller doesn't give any.
        real_time: whether a model should give the clip's own seconds a grid step.
        constant: all views of a video have the same time: RoPE on the T section cancels among them.
        requires_frames: goes by the raw indices of the frames.
        requires_cameras: goes by the cameras.
    """

    seconds_per_grid: int | float = 1.0
    real_time: bool = False
    constant: bool = False
    requires_frames: bool = False
    requires_cameras: bool = False

    @abstractmethod
    def __call__(self, steps: TemporalPatches) -> Int[Tensor, " N"]:
        """The position of each step.

        Raises:
            ValueError: steps that don't say what this index goes by.
        """


class TimestampIndex(TimeIndex):
    """floor(k * tokens_per_second * seconds_per_grid), as Qwen2.5-VL.

    Args:
        seconds_per_grid: nominal seconds of a grid step, whatever the clip's real rate. The released
            Spatial-MLLM checkpoints are scored with 1.0 and were trained with 0.5.
        real_time: take the clip's own seconds instead.
    """

    def __init__(self, seconds_per_grid: int | float = 1.0, real_time: bool = False) -> None:
        self.seconds_per_grid = seconds_per_grid
        self.real_time = real_time

    def __call__(self, steps: TemporalPatches) -> Int[Tensor, " N"]:
        # float32 and this order of the products: the floor has to fall as it did in training
        return (steps.step * steps.seconds * steps.tokens_per_second).long()


class StepIndex(TimeIndex):
    """k: a grid step is one position, as Qwen2-VL; what 0.5 seconds a step amounts to."""

    def __call__(self, steps: TemporalPatches) -> Int[Tensor, " N"]:
        return steps.step


class ConstantIndex(TimeIndex):
    """0: all views of a video have the same time, as in a static scene. Stills start one after another."""

    constant = True

    def __call__(self, steps: TemporalPatches) -> Int[Tensor, " N"]:
        return torch.zeros_like(steps.step)


class _Spread(TimeIndex):
    """A number a step, spread over a range: its lowest value in a video is 0, its highest `span`.

    Args:
        span: the last position. A video whose steps all have one value is all at 0.
    """

    def __init__(self, span: int = 32) -> None:
        if span < 1:
            raise InputError(f"a span of {span}: positions go from 0 to span, which is at least 1")
        self.span = span

    @abstractmethod
    def values(self, steps: TemporalPatches) -> Float[Tensor, " N"]:
        """The number of each step of one video."""

    def __call__(self, steps: TemporalPatches) -> Int[Tensor, " N"]:
        positions = torch.zeros_like(steps.step)
        for video in steps.video.unique():
            here = steps.video == video
            values = self.values(steps.only(here)).double()
            values = values - values.amin()
            highest = values.amax()
            # a hair more than half: halves, which even steps give, must not be at the mercy of rounding
            spread = (values / highest.clamp(min=STILL) * self.span + 1e-6).round().long()
            positions[here] = spread * (highest >= STILL)
        return positions


class FrameNumberIndex(_Spread):
    """The raw index of the frame in its video, spread over 0 to `span`: steps far apart in the clip stay so.

    Of frames that are merged into one step, the mean.

    Args:
        span: the position of the latest step; the earliest is at 0.
    """

    requires_frames = True

    def values(self, steps: TemporalPatches) -> Float[Tensor, " N"]:
        if steps.frame is None:
            raise ValueError(
                "FrameNumberIndex goes by the raw indices of the frames: give frame_indices, those of each video"
            )
        return steps.frame


class PoseTimeIndex(_Spread):
    """A number that the poses give; a step without a camera has that of the step before (or the first one known)."""

    requires_cameras = True

    def __init__(
        self, measure: PoseMeasure = "euclidean", translation_weight: int | float = 1.0, span: int = 32
    ) -> None:
        super().__init__(span)
        self.measure, self.translation_weight = measure, translation_weight

    @abstractmethod
    def of_poses(self, world_to_camera: Float[Tensor, "S 4 4"]) -> Float[Tensor, " S"]:
        """The number of each pose of one video."""

    def values(self, steps: TemporalPatches) -> Float[Tensor, " N"]:
        if steps.world_to_camera is None or steps.has_camera is None:
            raise ValueError(f"{type(self).__name__} goes by the cameras: give cameras, one a grid step")
        known = steps.has_camera
        if not known.any():
            return steps.step.new_zeros(len(known), dtype=torch.float64)
        last_known = (known.cumsum(0) - 1).clamp(min=0)
        return self.of_poses(steps.world_to_camera[known])[last_known]


class PoseDistanceIndex(PoseTimeIndex):
    """The distance of a step's pose to that of a reference view, spread over 0 to `span`.

    One number can't tell poses apart: views on either side of the reference, at the same distance, get the same
    position, and so do a turn and a step of equal size.

    Args:
        measure: what the distance is, by the angle w (radians) and the distance of centers t (in meters, times
            translation_weight): `rotation` w, `center` t, `euclidean` sqrt(w^2 + t^2), `sum` w + t, `log` the norm of
            the logarithm of the relative pose.
        translation_weight: radians that a meter counts as.
        span: the position of the view furthest from the reference, which is at 0.
        reference: the `first` or `middle` view with a camera, or the `medoid`, nearest to the others.
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

    def of_poses(self, world_to_camera: Float[Tensor, "S 4 4"]) -> Float[Tensor, " S"]:
        intrinsics = torch.eye(3, device=world_to_camera.device).expand(1, len(world_to_camera), 3, 3)
        view = Cameras(world_to_camera[None], intrinsics).reference_view(self.reference)
        return pose_distances(world_to_camera, world_to_camera[view], self.measure, self.translation_weight)


class PathLengthIndex(PoseTimeIndex):
    """The length of the camera's path up to a step, spread over 0 to `span`: time by movement, not by the clock.

    It never goes back, so a view seen twice has two positions. Noisy poses lengthen the path where the camera
    stands still.

    Args:
        measure: the length of a leg of the path, by the angle w (radians) and the distance of centers t (in meters,
            times translation_weight): `rotation` w, `center` t, `euclidean` sqrt(w^2 + t^2), `sum` w + t, `log` the
            norm of the logarithm of the relative pose.
        translation_weight: radians that a meter counts as.
        span: the position of the last step.
    """

    def of_poses(self, world_to_camera: Float[Tensor, "S 4 4"]) -> Float[Tensor, " S"]:
        return path_length(world_to_camera, self.measure, self.translation_weight)
