"""Time indices computed from camera poses."""

from __future__ import annotations

from abc import abstractmethod
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from zoo.cameras import Cameras
from zoo.cameras.poses import PoseMeasure, path_length, pose_distances
from zoo.sequences.time_index.base import TemporalPatches
from zoo.sequences.time_index.clocks import SpreadIndex


class PoseTimeIndex(SpreadIndex):
    """Base class of time indices computed from the poses, see `pose_distances` for the arguments.

    A temporal patch without a camera takes the value of the last one before it that has a camera, or else of the
    first one that has.
    """

    requires_cameras = True

    def __init__(
        self, measure: PoseMeasure = "euclidean", translation_weight: int | float = 1.0, span: int = 32
    ) -> None:
        super().__init__(span)
        self.measure, self.translation_weight = measure, translation_weight
        self.uses_lengths = measure not in ("rotation", "center")  # positions are scaled to the span

    @abstractmethod
    def pose_values(
        self, world_to_camera: Float[Tensor, "B S 4 4"], has_camera: Bool[Tensor, "B S"]
    ) -> Float[Tensor, "B S"]:
        """Compute the value of each pose, without waiting for a GPU; those of invalid cameras are ignored.

        Args:
            world_to_camera: Of each video.
            has_camera: The valid ones.
        """

    def values(self, steps: TemporalPatches) -> Float[Tensor, " N"]:
        if steps.world_to_camera is None or steps.has_camera is None:
            raise ValueError(f"{type(self).__name__} requires cameras: pass one per temporal patch")
        return self.patch_values(steps.world_to_camera[None], steps.has_camera[None])[0]

    def patch_values(
        self, world_to_camera: Float[Tensor, "B S 4 4"], has_camera: Bool[Tensor, "B S"]
    ) -> Float[Tensor, "B S"]:
        """Compute the value of each temporal patch, without waiting for a GPU; 0 in a video without any camera.

        Args:
            world_to_camera: Of each video.
            has_camera: The valid ones; another patch takes the value of one that has, see the class.
        """
        values = self.pose_values(world_to_camera, has_camera).gather(1, last_valid(has_camera))
        return values.where(has_camera.any(1, keepdim=True), 0.0)


class PoseDistanceIndex(PoseTimeIndex):
    """Pose distance to a reference view, scaled to 0 ... span.

    Not injective: two views at the same distance on either side of the reference share a position, and so do a
    rotation and a translation of equal size.

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

    It never decreases, so a view that is seen twice has two positions. Noise of the poses lengthens the path while
    the camera stands still.

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
        last = last_valid(has_camera)  # an invalid pose stands there
        poses = world_to_camera[torch.arange(len(last), device=last.device)[:, None], last]
        return torch.stack([path_length(each, self.measure, self.translation_weight) for each in poses])


def last_valid(has_camera: Bool[Tensor, "B S"]) -> Int[Tensor, "B S"]:
    """Return the number of the last valid pose up to each pose, or else of the first valid one."""
    number = torch.arange(has_camera.shape[1], device=has_camera.device).where(has_camera, -1)
    last = number.cummax(1).values
    return torch.where(last < 0, has_camera.int().argmax(1, keepdim=True), last)
