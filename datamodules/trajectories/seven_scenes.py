"""7-Scenes: a text file a pose beside each picture."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from datamodules.trajectories.base import PoseFormat, Trajectory, all_or_none, from_camera_to_world, intrinsics
from datamodules.trajectories.scannet import matrix
from datamodules.video import IMAGE_SUFFIXES, image_size


class SevenScenes(PoseFormat):
    """A sequence of Microsoft's 7-Scenes, such as redkitchen/seq-01 (Shotton et al., CVPR 2013).

        <scene>/frame-000000.color.png
        <scene>/frame-000000.pose.txt      4x4 camera-to-world
        <scene>/frame-000000.depth.png     optional, millimeters, 65535 where there is none

    Args:
        K_px: fx, fy, cx, cy in pixels; the data set states one camera for all.
    """

    def __init__(self, K_px: tuple[float, float, float, float] = (585.0, 585.0, 320.0, 240.0)) -> None:
        self.K_px = K_px

    def read(self, folder: Path) -> Trajectory:
        frames = sorted(f for f in folder.glob("frame-*.color.*") if f.suffix.lower() in IMAGE_SUFFIXES)
        if not frames:
            raise FileNotFoundError(f"{folder}: no frame-*.color.png: unpack the sequence's zip here")
        stems = [frame.name.split(".")[0] for frame in frames]
        poses = np.full((len(frames), 4, 4), np.nan)
        for row, stem in enumerate(stems):
            file = folder / f"{stem}.pose.txt"
            if file.is_file():
                poses[row] = matrix(file)
        height, width = image_size(frames[0])
        depth = tuple(folder / f"{stem}.depth.png" for stem in stems)
        return Trajectory(
            from_camera_to_world(torch.from_numpy(poses), str(folder)),
            intrinsics(*self.K_px).expand(len(frames), 3, 3), width, height, None, tuple(frames),
            all_or_none(depth),
        )  # fmt: skip
