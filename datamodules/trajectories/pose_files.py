"""ScanNet and 7-Scenes: one pose file per image."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float64
from torch import Tensor

from datamodules.trajectories.base import PoseFormat, Trajectory
from datamodules.trajectories.reading import all_or_none, from_camera_to_world, intrinsics, read_numbers, require_any
from datamodules.video import IMAGE_SUFFIXES, image_size


class ScanNet(PoseFormat):
    """A scene exported by ScanNet's SensReader (arXiv 1702.04405).

        <scene>/color/N.jpg
        <scene>/pose/N.txt                      4x4 camera-to-world
        <scene>/intrinsic/intrinsic_color.txt   4x4, in pixels of the color frames
        <scene>/depth/N.png                     optional, millimeters

    A pose is not finite where tracking was lost.
    """

    marker = "intrinsic/intrinsic_color.txt"

    def read(self, folder: Path) -> Trajectory:
        """Read an exported scene."""
        files = (folder / "color").glob("*")
        images = [file for file in files if file.suffix.lower() in IMAGE_SUFFIXES and file.stem.isdecimal()]
        require_any(images, f"{folder / 'color'}: no frames N.jpg: export them with SensReader")
        images.sort(key=lambda file: int(file.stem))
        K_px = torch.from_numpy(read_numbers(folder / "intrinsic/intrinsic_color.txt", columns=4, rows=4))[:3, :3]
        names = [str(int(image.stem)) for image in images]
        poses = [folder / f"pose/{name}.txt" for name in names]
        return posed_images(images, poses, [folder / f"depth/{name}.png" for name in names], K_px)


class SevenScenes(PoseFormat):
    """A sequence of Microsoft's 7-Scenes, such as redkitchen/seq-01 (Shotton et al., CVPR 2013).

        <scene>/frame-000000.color.png
        <scene>/frame-000000.pose.txt      4x4 camera-to-world
        <scene>/frame-000000.depth.png     optional, millimeters, 65535 where depth is missing

    Args:
        K_px: Fx, fy, cx, cy in pixels; the dataset states one camera for all sequences.
    """

    marker = "frame-*.pose.txt"

    def __init__(self, K_px: tuple[float, float, float, float] = (585.0, 585.0, 320.0, 240.0)) -> None:
        self.K_px = K_px

    def read(self, folder: Path) -> Trajectory:
        """Read an unpacked sequence."""
        images = sorted(file for file in folder.glob("frame-*.color.*") if file.suffix.lower() in IMAGE_SUFFIXES)
        require_any(images, f"{folder}: no frame-*.color.png: unpack the sequence's zip here")
        stems = [folder / image.name.split(".")[0] for image in images]
        poses, depth = ([Path(f"{stem}.{suffix}") for stem in stems] for suffix in ("pose.txt", "depth.png"))
        return posed_images(images, poses, depth, intrinsics(*self.K_px))


def posed_images(
    images: Sequence[Path], poses: Sequence[Path], depth: Sequence[Path], K_px: Float64[Tensor, "3 3"]
) -> Trajectory:
    """Read the poses of images.

    Args:
        images: Images of one size, in order.
        poses: A file of each image with a 4x4 camera-to-world matrix; absent or not finite where the pose is unknown.
        depth: The depth image of each image; used if all exist.
        K_px: Intrinsics of all images.

    Raises:
        ValueError: A file is damaged or holds no rigid transform, or two images have one pose.
    """
    if len(set(poses)) < len(poses):
        twice = next(i for i, file in enumerate(poses) if file in poses[:i])
        raise ValueError(f"{images[twice]}: a second image with the pose {poses[twice].name}: remove one of them")
    matrices = np.full((len(poses), 4, 4), np.nan)
    for matrix, file in zip(matrices, poses, strict=True):
        if file.is_file():
            matrix[:] = read_numbers(file, columns=4, rows=4)
    world_to_camera = from_camera_to_world(torch.from_numpy(matrices), str(poses[0].parent))
    height, width = image_size(images[0])
    K_px = K_px.expand(len(images), 3, 3)
    return Trajectory(world_to_camera, K_px, width, height, None, tuple(images), all_or_none(depth))
