"""TUM RGB-D: a list of images and a list of poses, both with timestamps."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float64
from torch import Tensor

from datamodules.trajectories.base import (
    Match,
    PoseFormat,
    Trajectory,
    from_camera_to_world,
    intrinsics,
    read_numbers,
    rigid,
)
from datamodules.trajectories.rotations import from_quaternion
from datamodules.video import image_size


class TUM(PoseFormat):
    """A sequence of the TUM RGB-D benchmark (Sturm et al., IROS 2012).

        <scene>/groundtruth.txt   time tx ty tz qx qy qz qw: camera-to-world
        <scene>/rgb.txt           time filename

    Args:
        K_px: fx, fy, cx, cy in pixels; the dataset lists them per device, the default is recommended for all.
        trajectory: The file of poses.
        tolerance_s: Maximum time between an image and its poses, in seconds.
        match: "slerp" between the poses around an image, or the "nearest".
    """

    def __init__(
        self,
        K_px: tuple[float, float, float, float] = (525.0, 525.0, 319.5, 239.5),
        trajectory: str = "groundtruth.txt",
        tolerance_s: float = 0.05,
        match: Match = "slerp",
    ) -> None:
        self.K_px, self.trajectory = K_px, trajectory
        self.tolerance_s, self.match = tolerance_s, match

    def read(self, folder: Path) -> Trajectory:
        """Reads a sequence; poses are matched to images by time."""
        images = read_list(folder / "rgb.txt")
        frames = tuple(folder / name for _, name in images)
        if absent := next((frame for frame in frames if not frame.is_file()), None):
            raise FileNotFoundError(
                f"{absent} is absent, but listed in {folder / 'rgb.txt'}: unpack the sequence again"
            )
        times_s, poses = read_tum(folder / self.trajectory)
        height, width = image_size(frames[0])
        track = Trajectory(poses, intrinsics(*self.K_px).expand(len(poses), 3, 3), width, height, times_s)
        return replace(track.at([time_s for time_s, _ in images], self.tolerance_s, self.match), frames=frames)


def read_tum(file: Path) -> tuple[Float64[Tensor, " N"], Float64[Tensor, "N 4 4"]]:
    """Reads timestamps in seconds and world-to-camera poses, sorted by time.

    Raises:
        ValueError: A malformed row, or no row, with the file.
    """
    table = read_numbers(file, 8)
    if not len(table):
        raise ValueError(f"{file}: no poses in it: a line is `time tx ty tz qx qy qz qw`")
    rows = torch.from_numpy(table[np.argsort(table[:, 0], kind="stable")])
    camera_to_world = rigid(from_quaternion(rows[:, 4:]), rows[:, 1:4])
    return rows[:, 0], from_camera_to_world(camera_to_world, str(file), "row")


def read_list(file: Path) -> list[tuple[float, str]]:
    """Reads (time in seconds, file name) of images, sorted by time.

    Raises:
        ValueError: A malformed row, or no row, with file and line.
    """
    images = []
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), start=1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        try:
            time, name = line.split()
            images.append((float(time), name))
        except ValueError as error:
            raise ValueError(f"{file}:{number}: not `time filename`") from error
    if not images:
        raise ValueError(f"{file}: no images in it: a line is `time filename`")
    return sorted(images)
