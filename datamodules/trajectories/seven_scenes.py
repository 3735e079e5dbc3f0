"""7-Scenes: one pose file beside each image."""

from __future__ import annotations

from pathlib import Path

from datamodules.trajectories.base import PoseFormat, Trajectory, all_or_none, intrinsics, read_pose_files
from datamodules.video import IMAGE_SUFFIXES, image_size


class SevenScenes(PoseFormat):
    """A sequence of Microsoft's 7-Scenes, such as redkitchen/seq-01 (Shotton et al., CVPR 2013).

        <scene>/frame-000000.color.png
        <scene>/frame-000000.pose.txt      4x4 camera-to-world
        <scene>/frame-000000.depth.png     optional, millimeters, 65535 where depth is missing

    Args:
        K_px: fx, fy, cx, cy in pixels; the dataset states one camera for all sequences.
    """

    def __init__(self, K_px: tuple[float, float, float, float] = (585.0, 585.0, 320.0, 240.0)) -> None:
        self.K_px = K_px

    def read(self, folder: Path) -> Trajectory:
        """Reads an unpacked sequence."""
        frames = sorted(file for file in folder.glob("frame-*.color.*") if file.suffix.lower() in IMAGE_SUFFIXES)
        if not frames:
            raise FileNotFoundError(f"{folder}: no frame-*.color.png: unpack the sequence's zip here")
        stems = [frame.name.split(".")[0] for frame in frames]
        height, width = image_size(frames[0])
        poses = read_pose_files([folder / f"{stem}.pose.txt" for stem in stems])
        depth = all_or_none([folder / f"{stem}.depth.png" for stem in stems])
        K_px = intrinsics(*self.K_px).expand(len(frames), 3, 3)
        return Trajectory(poses, K_px, width, height, None, tuple(frames), depth)
