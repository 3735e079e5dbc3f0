"""ScanNet's export: a text file a pose beside a picture a frame."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from datamodules.trajectories.base import PoseFormat, Trajectory, all_or_none, from_camera_to_world, read_numbers
from datamodules.video import IMAGE_SUFFIXES, image_size


class ScanNet(PoseFormat):
    """A scene as ScanNet's SensReader exports it (arXiv 1702.04405).

    <scene>/color/N.jpg
    <scene>/pose/N.txt                      4x4 camera-to-world; what isn't finite was not tracked
    <scene>/intrinsic/intrinsic_color.txt   4x4, in pixels of the color frames
    <scene>/depth/N.png                     optional, millimeters
    """

    def read(self, folder: Path) -> Trajectory:
        frames = numbered(folder / "color")
        if not frames:
            raise FileNotFoundError(f"{folder / 'color'}: no frames N.jpg: export them with SensReader")
        poses = np.full((len(frames), 4, 4), np.nan)
        for row, number in enumerate(frames):
            file = folder / "pose" / f"{number}.txt"
            if file.is_file():
                poses[row] = matrix(file)
        K_px = torch.from_numpy(matrix(folder / "intrinsic/intrinsic_color.txt")[:3, :3].copy())
        height, width = image_size(next(iter(frames.values())))
        depth = tuple(folder / "depth" / f"{number}.png" for number in frames)
        return Trajectory(
            from_camera_to_world(torch.from_numpy(poses), str(folder / "pose")),
            K_px.expand(len(frames), 3, 3), width, height, None, tuple(frames.values()),
            all_or_none(depth),
        )  # fmt: skip


def numbered(folder: Path) -> dict[int, Path]:
    """The pictures N.jpg or N.png of a folder by N, in order."""
    files = (file for file in folder.glob("*") if file.suffix.lower() in IMAGE_SUFFIXES and file.stem.isdecimal())
    return {int(file.stem): file for file in sorted(files, key=lambda file: int(file.stem))}


def matrix(file: Path) -> np.ndarray:
    """A 4x4 matrix. Raises ValueError that names the file, FileNotFoundError."""
    rows = read_numbers(file, 4)
    if len(rows) != 4:
        raise ValueError(f"{file}: {len(rows)} rows, a pose has 4: export it again")
    return rows
