"""ScanNet's export: one image and one pose file per frame."""

from __future__ import annotations

from pathlib import Path

import torch

from datamodules.trajectories.base import PoseFormat, Trajectory, all_or_none, read_matrix, read_pose_files
from datamodules.video import IMAGE_SUFFIXES, image_size


class ScanNet(PoseFormat):
    """A scene exported by ScanNet's SensReader (arXiv 1702.04405).

    <scene>/color/N.jpg
    <scene>/pose/N.txt                      4x4 camera-to-world; not finite where tracking was lost
    <scene>/intrinsic/intrinsic_color.txt   4x4, in pixels of the color frames
    <scene>/depth/N.png                     optional, millimeters
    """

    def read(self, folder: Path) -> Trajectory:
        """Reads an exported scene."""
        files = (folder / "color").glob("*")
        images = [file for file in files if file.suffix.lower() in IMAGE_SUFFIXES and file.stem.isdecimal()]
        if not images:
            raise FileNotFoundError(f"{folder / 'color'}: no frames N.jpg: export them with SensReader")
        frames = tuple(sorted(images, key=lambda file: int(file.stem)))
        K_px = torch.from_numpy(read_matrix(folder / "intrinsic/intrinsic_color.txt")[:3, :3].copy())
        height, width = image_size(frames[0])
        poses = read_pose_files([folder / f"pose/{int(frame.stem)}.txt" for frame in frames])
        depth = all_or_none([folder / f"depth/{int(frame.stem)}.png" for frame in frames])
        return Trajectory(poses, K_px.expand(len(frames), 3, 3), width, height, None, frames, depth)
