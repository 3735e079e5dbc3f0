"""Depth maps of a scene's raw frames: a folder of images, or rendered again from a room's description.

    <root>/<dataset>/<scene_name>.depth/           one 16-bit PNG in millimeters a raw frame, in natural order,
                                                   0 or 65535 where there is none, as in 7-Scenes and ScanNet
    <root>/<dataset>/<scene_name>.scene.json       what the embedded rooms have

Depth is along the camera's z axis. Its images may have another size than the frames, if they show the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float32
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from datamodules.video import natural_key

RENDERED = ".scene.json"
NOTHING = (0, 65535)  # what depth cameras write where they saw nothing
MILLIMETERS = 1000


def find_depth(video: Path) -> Path | None:
    """The depth beside a video file or a folder of frames, or None."""
    name = video.name if video.is_dir() else video.stem
    folder, rendered = video.with_name(f"{name}.depth"), video.with_name(f"{name}{RENDERED}")
    if folder.is_dir():
        return folder
    return rendered if rendered.is_file() else None


def read_depth(
    path: str | Path, indices: Sequence[int], *, num_frames: int, size_hw: tuple[int, int]
) -> Float32[Tensor, "T H W"]:
    """Depth in meters of some raw frames, in that order; 0 where there is none.

    Resized by taking the nearest pixel: a mean over an edge would be the depth of nothing.

    Args:
        path: a folder of depth images, or a room's description; see `find_depth`.
        indices: of the raw frames.
        num_frames: raw frames of the video that the depth belongs to.
        size_hw: height and width in pixels of the result, those of the resized frames.

    Raises:
        ValueError: one line that names the file: another number of images than of frames, an image that is
            not 16 bits deep or can't be read, images of mixed sizes.
    """
    path = Path(path)
    depth = _rendered(path, indices) if path.name.endswith(RENDERED) else _images(path, indices, num_frames)
    if tuple(depth.shape[1:]) == tuple(size_hw):
        return depth
    return F.interpolate(depth[:, None], size_hw, mode="nearest-exact")[:, 0]


def _rendered(path: Path, indices: Sequence[int]) -> Float32[Tensor, "T H W"]:
    # here, since the rooms are a source, and sources know of depth
    from datamodules.sources.rooms import render_depth

    return torch.from_numpy(render_depth(path, list(indices)))


def _images(folder: Path, indices: Sequence[int], num_frames: int) -> Float32[Tensor, "T H W"]:
    files = sorted(
        (file for file in folder.iterdir() if file.suffix.lower() == ".png" and file.name[0] != "."),
        key=lambda file: natural_key(file.name),
    )
    if len(files) != num_frames:
        raise ValueError(f"{folder}: {len(files)} depth images for a video of {num_frames} frames: give one a frame")
    depth = [_image(files[i]) for i in indices]
    for i, image in zip(indices, depth, strict=True):
        if image.shape != depth[0].shape:
            raise ValueError(f"{files[i]}: depth images of mixed sizes: {_size(image)}, not {_size(depth[0])}")
    return torch.from_numpy(np.stack(depth))


def _image(file: Path) -> Float32[np.ndarray, "H W"]:
    try:
        with Image.open(file) as image:
            mode, pixels = image.mode, np.array(image)
    except (OSError, SyntaxError) as error:  # Pillow raises both on damaged files
        raise ValueError(f"{file}: unreadable depth image: write it again") from error
    if not mode.startswith("I"):  # Pillow's name for 16 and 32 bits
        raise ValueError(f"{file}: depth must be a 16-bit PNG in millimeters, this image has mode {mode}")
    meters = (pixels / MILLIMETERS).astype(np.float32)
    meters[np.isin(pixels, NOTHING)] = 0
    return meters


def _size(image: np.ndarray) -> str:
    return f"{image.shape[1]} x {image.shape[0]}"
