"""Camera trajectories, and the base class of the formats in which datasets and apps store them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
import torch
from jaxtyping import Bool, Float64, Int, Int64
from torch import Tensor

from zoo.cameras.poses import invert_se3, nearest_rotation, rigid_matrix, so3_log

# exceptions that readers of poses raise on damaged files
UNREADABLE = (OSError, ValueError, LookupError, TypeError, AttributeError, ArithmeticError)
Match = Literal["slerp", "nearest"]
SAME_TIME_S = 1e-6
ASPECT_TOLERANCE = 0.02  # relative, because image sizes are rounded
DEPTH_TOLERANCE_S = 0.05  # between a frame and its depth image, in which a hand-held camera moves by centimeters

# turns an image counter-clockwise by 90 degrees: its right side becomes the top
QUARTER_TURN = torch.tensor([[0.0, 1, 0, 0], [-1, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]], dtype=torch.float64)


@dataclass(frozen=True)
class Trajectory:
    """Camera poses: world-to-camera, OpenCV axes, in the dataset's unit (meters).

    Attributes:
        world_to_camera: Poses, NaN where unknown.
        K_px: Intrinsics of each pose, in pixels of an image of `width` x `height`.
        width: Width of the image in pixels.
        height: Height of the image in pixels.
        times_s: Increasing timestamps of the poses in seconds. None if the dataset has none.
        frames: Image of each pose. Empty if poses only have timestamps.
        depth: Depth image of each frame (16 bits, millimeters), None for a frame without. Empty without depth.
        depth_times_s: Increasing timestamps of the depth images, if they are matched with frames by time like the
            poses.
        quarter_turns: Counter-clockwise quarter turns that make the images upright. The poses are not turned yet.
    """

    world_to_camera: Float64[Tensor, "N 4 4"]
    K_px: Float64[Tensor, "N 3 3"]
    width: int
    height: int
    times_s: Float64[Tensor, " N"] | None = None
    frames: tuple[Path, ...] = ()
    depth: tuple[Path | None, ...] = ()
    depth_times_s: Float64[Tensor, " D"] | None = None
    quarter_turns: int = 0

    def __len__(self) -> int:
        return len(self.world_to_camera)

    @property
    def known(self) -> Bool[Tensor, " N"]:
        """Mask of the known poses."""
        return self.world_to_camera.isfinite().flatten(1).all(1)

    def at(self, times_s: Sequence[float], tolerance_s: float, match: Match = "slerp") -> Trajectory:
        """Return cameras at other timestamps. A pose is unknown if none lies within `tolerance_s`.

        Args:
            times_s: Times on the clock of `self.times_s`.
            tolerance_s: Maximum time to the poses that are used.
            match: "slerp" interpolates between the poses before and after: rotations on the shortest arc, camera
                centers linearly. Before the first pose, after the last and in gaps it takes the nearest. "nearest"
                always takes the nearest.

        Raises:
            ValueError: The trajectory has no timestamps or no pose.
        """
        if self.times_s is None or not self.known.any():
            raise ValueError("a trajectory needs times and poses to be matched by time")
        poses, K_px = self.world_to_camera[self.known], self.K_px[self.known]
        known_s, query_s = self.times_s[self.known].numpy(), np.asarray(times_s, dtype=np.float64)
        before, after, nearest = neighbors_in_time(known_s, query_s)
        matched = poses[torch.from_numpy(nearest)].clone()
        if match == "slerp":
            to_before, to_after = query_s - known_s[before], known_s[after] - query_s
            between = (to_before > SAME_TIME_S) & (to_after > SAME_TIME_S)
            between &= (to_before <= tolerance_s) & (to_after <= tolerance_s)
            fraction = torch.from_numpy(to_before[between] / (to_before + to_after)[between])
            first, second = torch.from_numpy(before[between]), torch.from_numpy(after[between])
            matched[torch.from_numpy(between)] = interpolate(poses[first], poses[second], fraction)
        is_far = np.abs(known_s[nearest] - query_s) > tolerance_s
        matched[torch.from_numpy(is_far)] = torch.nan
        K_px, query = K_px[torch.from_numpy(nearest)], torch.from_numpy(query_s)
        matched_depth = self._depth_at(query_s)
        return replace(
            self,
            world_to_camera=matched,
            K_px=K_px,
            times_s=query,
            frames=(),
            depth=matched_depth,
            depth_times_s=None,
        )

    def _depth_at(self, times_s: Float64[np.ndarray, " M"]) -> tuple[Path | None, ...]:
        """Return the depth images nearest in time. Empty without timestamps of depth, or if all are too far."""
        if self.depth_times_s is None:
            return ()
        known_s = self.depth_times_s.numpy()
        *_, nearest = neighbors_in_time(known_s, times_s)
        is_near = np.abs(known_s[nearest] - times_s) <= DEPTH_TOLERANCE_S
        found = (self.depth[i] if near else None for i, near in zip(nearest.tolist(), is_near, strict=True))
        return tuple(found) if is_near.any() else ()

    def scaled(self, factor: float) -> Trajectory:
        """Return the cameras in another unit of length. The factor is, for example, meters per unit."""
        poses = self.world_to_camera.clone()
        poses[:, :3, 3] *= factor
        return replace(self, world_to_camera=poses)

    def turned(self) -> Trajectory:
        """Return the cameras of the images after their quarter turns."""
        poses, K_px, width, height = self.world_to_camera, self.K_px, self.width, self.height
        for _ in range(self.quarter_turns % 4):
            poses = QUARTER_TURN @ poses
            turned = K_px.clone()  # (x, y) -> (y, width - x)
            turned[:, 0, 0], turned[:, 1, 1] = K_px[:, 1, 1], K_px[:, 0, 0]
            turned[:, 0, 2], turned[:, 1, 2] = K_px[:, 1, 2], width - K_px[:, 0, 2]
            K_px, width, height = turned, height, width
        return replace(self, world_to_camera=poses, K_px=K_px, width=width, height=height, quarter_turns=0)

    def resized(self, width: int, height: int) -> Trajectory:
        """Return the cameras of the resized images.

        Raises:
            ValueError: The aspect ratio differs.
        """
        scale_x, scale_y = width / self.width, height / self.height
        if abs(scale_x / scale_y - 1) > ASPECT_TOLERANCE:
            size = f"{self.width} x {self.height}"
            raise ValueError(
                f"the images have {width} x {height} pixels, the cameras are for {size}: cropped or turned"
            )
        scale = torch.tensor([scale_x, scale_y, 1.0], dtype=torch.float64)
        return replace(self, K_px=scale[:, None] * self.K_px, width=width, height=height)

    def at_steps(self, num_frames: int) -> Trajectory:
        """Return the cameras of a video of the same recording: every frame, every k-th frame, or frames at even steps.

        Args:
            num_frames: Number of frames of the video.

        Raises:
            ValueError: The video has more frames than there are poses.
        """
        if num_frames > len(self):
            raise ValueError(f"{num_frames} frames for {len(self)} poses without times: it is another recording")
        k = round(len(self) / num_frames)
        every_kth = torch.arange(0, len(self), k)[:num_frames]
        if abs(len(self) / k - num_frames) < 1 and len(every_kth) == num_frames:
            return self.take(every_kth)
        return self.take(torch.linspace(0, len(self) - 1, num_frames, dtype=torch.float64).round().long())

    def only(self, mask: Bool[Tensor, " N"]) -> Trajectory:
        """Return the poses of a mask, with their frames and depth."""
        return self.take(mask.nonzero().flatten())

    def take(self, indices: Int64[Tensor, " M"]) -> Trajectory:
        """Return the poses at these indices, with their frames and depth."""
        rows = indices.tolist()
        return replace(
            self,
            world_to_camera=self.world_to_camera[indices],
            K_px=self.K_px[indices],
            times_s=None if self.times_s is None else self.times_s[indices],
            frames=tuple(self.frames[i] for i in rows) if self.frames else (),
            depth=tuple(self.depth[i] for i in rows) if self.depth else (),
        )


class FrameTrajectory(Trajectory):
    """Poses of one video's frames, by the numbers of the frames, with an assumed camera of centered square pixels.

    Until `resized` tells the video's size, `K_px` is for an image whose longer side is 1.
    """

    def at_steps(self, num_frames: int) -> Trajectory:
        """Return the cameras of the video's frames. Frames after the last pose have none.

        Args:
            num_frames: Number of frames of the video.

        Raises:
            ValueError: A pose is of a frame that the video lacks.
        """
        if num_frames < len(self):
            raise ValueError(f"{num_frames} frames, but frame {len(self) - 1} has a pose: it is another video")
        poses = torch.full((num_frames, 4, 4), torch.nan, dtype=torch.float64)
        poses[: len(self)] = self.world_to_camera
        return replace(self, world_to_camera=poses, K_px=self.K_px[:1].expand(num_frames, 3, 3))

    def resized(self, width: int, height: int) -> Trajectory:
        """Return the cameras for the video's size."""
        K_px = max(width, height) * self.K_px
        K_px[:, :, 2] = K_px.new_tensor([width / 2, height / 2, 1])
        return replace(self, K_px=K_px, width=width, height=height)


class PoseFormat(ABC):
    """A format in which a dataset or an app stores the poses of a scene. A new format is a class with `read`.

    Attributes:
        marker: Glob pattern of a file in the folder of each scene, by which `import-cameras` detects the format.
        is_metric: Whether poses are in meters.
    """

    marker: ClassVar[str]
    is_metric: ClassVar[bool] = True

    @abstractmethod
    def read(self, folder: Path) -> Trajectory:
        """Read the frames of a scene in order, each with its pose.

        Raises:
            FileNotFoundError: A file is missing. The message is one line with the remedy.
            ValueError: A file is damaged. The message is one line with the remedy.
        """

    def read_track(self, folder: Path) -> Trajectory:
        """Read all poses of a recording, to match them with its video: with timestamps, or one per recorded frame.

        Raises:
            FileNotFoundError: As in `read`.
            ValueError: As in `read`.
        """
        return self.read(folder)


def neighbors_in_time(
    known_s: Float64[np.ndarray, " N"], query_s: Float64[np.ndarray, " M"]
) -> tuple[Int[np.ndarray, " M"], Int[np.ndarray, " M"], Int[np.ndarray, " M"]]:
    """Return indices of the sorted timestamps before, after and nearest to each query. A tie goes to the later one."""
    after = np.searchsorted(known_s, query_s).clip(0, len(known_s) - 1)
    before = (after - 1).clip(0)
    is_before = np.abs(query_s - known_s[before]) < np.abs(known_s[after] - query_s)
    return before, after, np.where(is_before, before, after)


def interpolate(
    first: Float64[Tensor, "N 4 4"], second: Float64[Tensor, "N 4 4"], fraction: Float64[Tensor, " N"]
) -> Float64[Tensor, "N 4 4"]:
    """Interpolate world-to-camera poses: rotations by slerp, camera centers linearly."""
    a, b = invert_se3(first), invert_se3(second)
    R = slerp(a[:, :3, :3], b[:, :3, :3], fraction)
    return invert_se3(rigid_matrix(R, torch.lerp(a[:, :3, 3], b[:, :3, 3], fraction[:, None])))


def upright_turns(world_to_camera: Float64[Tensor, "N 4 4"]) -> int:
    """Return the counter-clockwise quarter turns after which the world's z axis points up in most images."""
    right, down = world_to_camera[:, 0, 2].nansum(), world_to_camera[:, 1, 2].nansum()  # the world's z axis in images
    return int(torch.stack((-down, right, down, -right)).argmax())


# ---- Rotations in float64 -------------------------------------------------------------------------------------------


def from_axis_angle(vectors: Float64[Tensor, "N 3"]) -> Float64[Tensor, "N 3 3"]:
    """Return rotations about the vectors by their lengths in radians (Rodrigues' formula)."""
    return torch.linalg.matrix_exp(_skew(vectors))


def slerp(
    start: Float64[Tensor, "N 3 3"], end: Float64[Tensor, "N 3 3"], fraction: Float64[Tensor, " N"]
) -> Float64[Tensor, "N 3 3"]:
    """Spherical linear interpolation on the shortest arc (Shoemake, 1985).

    Args:
        start: Rotations at fraction 0. Like `end`, they are orthonormal to 1e-2 and are projected to SO(3).
        end: Rotations at fraction 1.
        fraction: Between 0 and 1.
    """
    start = nearest_rotation(start)
    return start @ from_axis_angle(fraction[:, None] * so3_log(start.mT @ nearest_rotation(end)))


def _skew(vectors: Float64[Tensor, "N 3"]) -> Float64[Tensor, "N 3 3"]:
    """Return the matrices of the cross product with the vectors."""
    zero = torch.zeros_like(vectors[:, 0])
    x, y, z = vectors.unbind(-1)
    return torch.stack((zero, -z, y, z, zero, -x, -y, x, zero), -1).reshape(-1, 3, 3)
