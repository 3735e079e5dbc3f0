"""cameras.txt and images.txt of COLMAP."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch

from datamodules.trajectories.base import PoseFormat, Trajectory, intrinsics, listed_frames, one_size
from datamodules.video import natural_key
from zoo.cameras.poses import rigid_matrix
from zoo.geometry.layers import quaternion_to_rotation

# parameters of the models before the distortion: f, cx, cy or fx, fy, cx, cy
PARAMETERS = {"SIMPLE_PINHOLE": 3, "SIMPLE_RADIAL": 3, "RADIAL": 3, "PINHOLE": 4, "OPENCV": 4, "FULL_OPENCV": 4}


class COLMAP(PoseFormat):
    """A reconstruction in COLMAP's text format (Schönberger and Frahm, CVPR 2016), in an arbitrary unit of length.

        <scene>/sparse/0/cameras.txt   CAMERA_ID MODEL WIDTH HEIGHT PARAMS...
        <scene>/sparse/0/images.txt    IMAGE_ID QW QX QY QZ TX TY TZ CAMERA_ID NAME: world-to-camera; a line of points
        <scene>/images/NAME

    Frames are in natural order of their names; pixels count from the corner of the image, as here. Lens distortion is
    not modeled: fisheye images must be undistorted first, the slight distortion of other lenses is ignored.

    Args:
        model: The folder of the two files, relative to the folder of the scene.
        images: The folder that the names are relative to, in the folder of the scene.
    """

    marker = "sparse/0/cameras.*"
    is_metric = False

    def __init__(self, model: str = "sparse/0", images: str = "images") -> None:
        self.model, self.images = model, images

    def read(self, folder: Path) -> Trajectory:
        """Read the images that were registered."""
        model = folder / self.model
        file, listing = model / "cameras.txt", model / "images.txt"
        if not file.is_file() and (model / "cameras.bin").is_file():
            convert = f"colmap model_converter --input_path {model} --output_path {model} --output_type TXT"
            raise FileNotFoundError(f"{file} is absent, there is the binary format alone: {convert}")
        cameras = {row[0]: row[1:] for line in _lines(file) if (row := line.split())}
        rows = sorted(_images(listing), key=lambda row: natural_key(row[-1]))
        if not rows:
            raise ValueError(f"{listing}: no images in it: COLMAP has registered none")
        names, poses, K_px, sizes = [], [], [], set()
        for row in rows:
            try:
                kind, width, height, *parameters = cameras[row[8]]
                *focal, cx, cy = map(float, parameters[: PARAMETERS[kind]])
                poses.append([float(word) for word in row[1:8]])
                K_px.append(intrinsics(focal[0], focal[-1], cx, cy))
                names.append(row[9])
                sizes.add((int(width), int(height)))
            except (IndexError, KeyError, ValueError) as error:
                damage = f"it is damaged, or its camera is none of {', '.join(PARAMETERS)}: undistort the images first"
                raise ValueError(f"{listing}: image {row[0]}: {damage} ({error!r})") from error
        numbers = torch.tensor(poses, dtype=torch.float64)
        world_to_camera = rigid_matrix(quaternion_to_rotation(numbers[:, [1, 2, 3, 0]]), numbers[:, 4:])
        frames = listed_frames([folder / self.images / name for name in names], listing)
        return Trajectory(world_to_camera, torch.stack(K_px), *one_size(sizes, file), None, frames)


def _images(listing: Path) -> Iterator[list[str]]:
    """The words of each image, the name last; the line of points that follows it is empty where there are none."""
    lines = iter(_lines(listing))
    for line in lines:
        if line.strip():
            yield line.split(maxsplit=9)
            next(lines, "")


def _lines(file: Path) -> list[str]:
    """The lines of a file that are not comments; empty ones count."""
    try:
        text = file.read_text(encoding="utf-8-sig")
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{file} is absent: export the model as text again") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{file}: not a text file ({error}): export the model as text again") from error
    return [line for line in text.splitlines() if not line.startswith("#")]
