"""Depth maps of raw frames: a folder of depth images, or the description of a rendered room.

    <root>/<dataset>/<scene_name>.depth/           one 16-bit PNG in millimeters per raw frame, in natural order;
                                                   0 or 65535 is missing depth, as in 7-Scenes and ScanNet
    <root>/<dataset>/<scene_name>.scene.json       the embedded rooms: depth is rendered when needed

Depth is measured along the camera's z axis. Depth images may have another resolution than the frames, but must show
the same field of view.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float32
from PIL import Image
from torch import Tensor
from torch.nn import functional

from datamodules.video import UNREADABLE_IMAGE, companion_name, natural_key

RENDERED = ".scene.json"
MISSING = (0, 65535)  # what depth cameras write without a measurement
MILLIMETERS = 1000


def find_depth(video: Path) -> Path | None:
    """The depth beside a video file or a folder of frames, or None."""
    name = companion_name(video)
    folder, rendered = video.with_name(f"{name}.depth"), video.with_name(f"{name}{RENDERED}")
    if folder.is_dir():
        return folder
    return rendered if rendered.is_file() else None


def read_depth(
    path: str | Path, indices: Sequence[int], *, num_frames: int, size_hw: tuple[int, int]
) -> Float32[Tensor, "T H W"]:
    """Depth in meters of raw frames, 0 where it is missing.

    Resized with nearest neighbor: averaging across an edge would give the depth of no surface.

    Args:
        path: A folder of depth images or the description of a room, see `find_depth`.
        indices: Raw frames, in the order of the result.
        num_frames: Raw frames of the video.
        size_hw: Height and width of the result in pixels.

    Raises:
        ValueError: One line that names the file: wrong number of images, an image that is unreadable or not 16 bits
            deep, images of mixed sizes.
    """
    path = Path(path)
    if path.name.endswith(RENDERED):
        from datamodules.sources.rooms import render_depth  # late: sources import this module

        depth = torch.from_numpy(render_depth(path, list(indices)))
    else:
        depth = _read_images(path, indices, num_frames)
    if tuple(depth.shape[1:]) == tuple(size_hw):
        return depth
    return functional.interpolate(depth[:, None], size_hw, mode="nearest-exact")[:, 0]


def _read_images(folder: Path, indices: Sequence[int], num_frames: int) -> Float32[Tensor, "T H W"]:
    files = [file for file in folder.iterdir() if file.suffix.lower() == ".png" and file.name[0] != "."]
    files.sort(key=lambda file: natural_key(file.name))
    if len(files) != num_frames:
        raise ValueError(f"{folder}: {len(files)} depth images for {num_frames} frames: provide one per frame")
    depth = [_read_image(files[i]) for i in indices]
    if len(sizes := {image.shape for image in depth}) > 1:
        raise ValueError(f"{folder}: depth images of {len(sizes)} sizes: write them again, all with one size")
    return torch.from_numpy(np.stack(depth))


def _read_image(file: Path) -> Float32[np.ndarray, "H W"]:
    try:
        with Image.open(file) as image:
            mode, pixels = image.mode, np.array(image)
    except UNREADABLE_IMAGE as error:
        raise ValueError(f"{file}: unreadable depth image: write it again") from error
    if not mode.startswith("I"):  # Pillow's modes of 16 and 32 bits
        raise ValueError(f"{file}: depth must be a 16-bit PNG in millimeters, this image has mode {mode}")
    meters = (pixels / MILLIMETERS).astype(np.float32)
    meters[np.isin(pixels, MISSING)] = 0
    return meters
