"""Cameras along a way, and what every format of poses is to the dataset of posed scenes."""

from __future__ import annotations

import sys
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from jaxtyping import Bool, Float64
from torch import Tensor

from datamodules.trajectories.rotations import slerp
from zoo.poses import invert_se3, nearest_rotation

Match = Literal["slerp", "nearest"]
SAME_TIME_S = 1e-6
SAME_ASPECT = 0.02  # share by which the ratio of the sides may differ: sizes are rounded

# a quarter turn of the picture counter-clockwise: what was to the right is now above
QUARTER_TURN = torch.tensor([[0.0, 1, 0, 0], [-1, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]], dtype=torch.float64)


@dataclass(frozen=True)
class Trajectory:
    """Poses in the project's convention: world-to-camera, OpenCV axes, the dataset's unit (meters).

    Attributes:
        world_to_camera: NaN where a pose is not known.
        K_px: in pixels of a picture of `width` x `height`, one for each pose.
        times_s: of each pose, rising; None where the dataset has no times.
        frames: the picture of each pose; empty where poses are known by their times only.
        depth: the depth image of each picture (16 bits, millimeters); empty where there is none.
        quarter_turns: counter-clockwise turns that make the pictures upright; the poses are those before them.
    """

    world_to_camera: Float64[Tensor, "N 4 4"]
    K_px: Float64[Tensor, "N 3 3"]
    width: int
    height: int
    times_s: Float64[Tensor, " N"] | None = None
    frames: tuple[Path, ...] = ()
    depth: tuple[Path, ...] = ()
    quarter_turns: int = 0

    def __len__(self) -> int:
        return len(self.world_to_camera)

    @property
    def known(self) -> Bool[Tensor, " N"]:
        """Which poses are known."""
        return self.world_to_camera.isfinite().flatten(1).all(1)

    def at(self, times_s: Sequence[float], tolerance_s: float, match: Match = "slerp") -> Trajectory:
        """The cameras at other times; a pose is not known there if none is within tolerance_s.

        Args:
            times_s: on the clock of `self.times_s`.
            tolerance_s: how far the poses that a time is matched with may lie from it.
            match: "slerp" goes between the poses before and after: rotations on the shortest arc, camera
                centers on a line; before the first and after the last it takes the nearest, as it does at a gap.
                "nearest" takes the nearest anywhere.

        Raises:
            ValueError: the trajectory has no times or no pose.
        """
        if self.times_s is None or not self.known.any():
            raise ValueError("a trajectory needs times and poses to be matched by time")
        own = self.times_s[self.known].numpy()
        poses, K_px = self.world_to_camera[self.known], self.K_px[self.known]
        asked = np.asarray(times_s, dtype=np.float64)
        after = np.searchsorted(own, asked).clip(0, len(own) - 1)
        before = (after - 1).clip(0)
        to_before, to_after = asked - own[before], own[after] - asked
        closer = np.where(np.abs(to_before) < np.abs(to_after), before, after)
        found = poses[torch.from_numpy(closer)].clone()
        if match == "slerp":
            between = (to_before > SAME_TIME_S) & (to_after > SAME_TIME_S)
            between &= (to_before <= tolerance_s) & (to_after <= tolerance_s)
            share = torch.from_numpy(to_before[between] / (to_before + to_after)[between])
            first, second = torch.from_numpy(before[between]), torch.from_numpy(after[between])
            found[torch.from_numpy(between)] = interpolate(poses[first], poses[second], share)
        apart = np.abs(own[closer] - asked) > tolerance_s
        found[torch.from_numpy(apart)] = torch.nan
        return replace(
            self,
            world_to_camera=found,
            K_px=K_px[torch.from_numpy(closer)],
            times_s=torch.from_numpy(asked),
            frames=(),
            depth=(),
        )

    def turned(self) -> Trajectory:
        """The cameras of the pictures after their quarter turns: a turned picture is another camera's."""
        poses, K_px, width, height = self.world_to_camera, self.K_px, self.width, self.height
        for _ in range(self.quarter_turns % 4):
            poses = QUARTER_TURN @ poses
            turned = K_px.clone()  # (x, y) -> (y, width - x)
            turned[:, 0, 0], turned[:, 1, 1] = K_px[:, 1, 1], K_px[:, 0, 0]
            turned[:, 0, 2], turned[:, 1, 2] = K_px[:, 1, 2], width - K_px[:, 0, 2]
            K_px, width, height = turned, height, width
        return replace(self, world_to_camera=poses, K_px=K_px, width=width, height=height, quarter_turns=0)

    def resized(self, width: int, height: int) -> Trajectory:
        """The cameras of the pictures in another size.

        Raises:
            ValueError: the sides have another ratio.
        """
        stretch = width / self.width, height / self.height
        if abs(stretch[0] / stretch[1] - 1) > SAME_ASPECT:
            raise ValueError(
                f"the pictures have {width} x {height} pixels, the cameras are for {self.width} x {self.height}: "
                "cropped or turned otherwise"
            )
        scale = torch.tensor([stretch[0], stretch[1], 1.0], dtype=torch.float64)
        return replace(self, K_px=scale[:, None] * self.K_px, width=width, height=height)

    def only(self, chosen: Bool[Tensor, " N"]) -> Trajectory:
        """The chosen poses with all that belongs to them."""
        keep = chosen.tolist()
        return replace(
            self,
            world_to_camera=self.world_to_camera[chosen],
            K_px=self.K_px[chosen],
            times_s=None if self.times_s is None else self.times_s[chosen],
            frames=tuple(frame for frame, k in zip(self.frames, keep, strict=False) if k),
            depth=tuple(image for image, k in zip(self.depth, keep, strict=False) if k),
        )


def all_or_none(depth: Sequence[Path]) -> tuple[Path, ...]:
    """The depth images if all are there; a scene with some of them says that it goes without."""
    absent = [image for image in depth if not image.is_file()]
    if absent and len(absent) < len(depth):
        said = f"{absent[0]}: absent, as are {len(absent)} of {len(depth)} depth images: the scene goes without depth"
        print(said, file=sys.stderr, flush=True)
    return () if absent else tuple(depth)


class PoseFormat(ABC):
    """How a dataset writes the poses of a scene. A new one is a file in this folder with `read`."""

    @abstractmethod
    def read(self, folder: Path) -> Trajectory:
        """The frames of the scene in a folder, in their order, each with its pose.

        Raises FileNotFoundError or ValueError, in one line that names the file and the remedy."""

    def read_track(self, folder: Path) -> Trajectory:
        """All poses of the scene with their times, whatever frames there are; those of the frames if not overridden.

        Raises as `read`."""
        return self.read(folder)


def interpolate(
    first: Float64[Tensor, "N 4 4"], second: Float64[Tensor, "N 4 4"], share: Float64[Tensor, " N"]
) -> Float64[Tensor, "N 4 4"]:
    """World-to-camera poses a share of the way from the first to the second."""
    a, b = invert_se3(first), invert_se3(second)
    between = torch.eye(4, dtype=torch.float64).repeat(len(a), 1, 1)
    between[:, :3, :3] = slerp(a[:, :3, :3], b[:, :3, :3], share)
    between[:, :3, 3] = torch.lerp(a[:, :3, 3], b[:, :3, 3], share[:, None])
    return invert_se3(between)


def upright_turns(world_to_camera: Float64[Tensor, "N 4 4"]) -> int:
    """Counter-clockwise quarter turns after which most pictures have the world's z axis pointing up in them."""
    known = world_to_camera[world_to_camera.isfinite().flatten(1).all(1)]
    right, down = known[:, 0, 2].sum(), known[:, 1, 2].sum()  # of the world's z axis, in the pictures
    return int(torch.stack((-down, right, down, -right)).argmax())


def read_numbers(path: Path, columns: int, separator: str | None = None) -> Float64[np.ndarray, "N columns"]:
    """The rows of a table of numbers; lines that start with # are comments.

    Raises:
        FileNotFoundError: no such file. ValueError: with file and line, a row with other things in it.
    """
    rows = []
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            if line.strip() and not line.lstrip().startswith("#"):
                words = line.split(separator)
                try:
                    rows.append([float(word) for word in words])
                except ValueError as error:
                    raise ValueError(f"{path}:{number}: not a row of numbers ({error})") from error
                if len(words) != columns:
                    raise ValueError(f"{path}:{number}: {len(words)} numbers in a row, {columns} belong there")
    return np.array(rows, dtype=np.float64).reshape(-1, columns)


def intrinsics(fx: float, fy: float, cx: float, cy: float) -> Float64[Tensor, "3 3"]:
    return torch.tensor([[fx, 0, cx], [0, fy, cy], [0, 0, 1]], dtype=torch.float64)


def rigid(R: Float64[Tensor, "N 3 3"], t: Float64[Tensor, "N 3"]) -> Float64[Tensor, "N 4 4"]:
    """The transforms x -> R x + t."""
    poses = torch.eye(4, dtype=torch.float64).repeat(len(R), 1, 1)
    poses[:, :3, :3], poses[:, :3, 3] = R, t
    return poses


def from_camera_to_world(
    camera_to_world: Float64[Tensor, "N 4 4"], what: str, each: str = "frame"
) -> Float64[Tensor, "N 4 4"]:
    """World-to-camera poses; one that isn't finite becomes NaN.

    Raises:
        ValueError: naming `what`, and the `each` whose rotation is none (off by more than 1e-2).
    """
    unknown = ~camera_to_world.isfinite().flatten(1).all(1)
    rotations = camera_to_world[:, :3, :3].clone()
    rotations[unknown] = torch.eye(3, dtype=rotations.dtype)
    poses = invert_se3(rigid(nearest_rotation(rotations, what, each), camera_to_world[:, :3, 3]))
    poses[unknown] = torch.nan
    return poses
