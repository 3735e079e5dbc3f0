"""Depth maps of raw frames, from a folder of depth images or from the description of a rendered scene.

    <root>/<dataset>/<scene_name>.depth/           one 16-bit PNG in millimeters per raw frame, in natural order;
                                                   0 or 65535 is missing depth, as in 7-Scenes and ScanNet
    <root>/<dataset>/<scene_name><suffix>          a description from which the dataset of that suffix renders depth
                                                   on demand, such as .scene.json of the embedded rooms

Depth is measured along the camera's z axis. Depth images may have another resolution than the frames, but must show the
same field of view.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float32
from PIL import Image
from torch import Tensor
from torch.nn import functional

from datamodules.video import UNREADABLE_IMAGE, companion_name, natural_key

MISSING = (0, 65535)  # depth cameras write these where they have no measurement
MILLIMETERS = 1000

# Render the depth of raw frames in meters from a description.
Renderer = Callable[[Path, Sequence[int]], Float32[np.ndarray, "T H W"]]
_renderers: dict[str, Renderer] = {}


def register_renderer(suffix: str, render: Renderer) -> None:
    """Register how depth is rendered from a description beside the video.

    Call this in the module that defines `render`, so that every process that imports the dataset knows it.

    Args:
        suffix: End of the description's file name after the scene's name, such as ".scene.json".
        render: Renders the depth of raw frames.
    """
    _renderers[suffix] = render


def find_depth(video: Path) -> Path | None:
    """Return the path of the depth beside a video file or a folder of frames, or None."""
    name = companion_name(video)
    folder = video.with_name(f"{name}.depth")
    if folder.is_dir():
        return folder
    descriptions = (video.with_name(f"{name}{suffix}") for suffix in _renderers)
    return next((file for file in descriptions if file.is_file()), None)


def read_depth(
    path: str | Path, indices: Sequence[int], *, num_frames: int, size_hw: tuple[int, int]
) -> Float32[Tensor, "T H W"]:
    """Read the depth of raw frames in meters, 0 where it is missing.

    Args:
        path: A folder of depth images or the description of a rendered scene, see `find_depth`.
        indices: Indices of the raw frames, in the order of the result.
        num_frames: Raw frames of the video.
        size_hw: Height and width of the result in pixels.

    Raises:
        ValueError: The number of images is wrong, an image is unreadable or not 16 bits deep, or image sizes differ.
            The message is one line that names the file.
    """
    path = Path(path)
    render = next((render for suffix, render in _renderers.items() if path.name.endswith(suffix)), None)
    if render is not None:
        depth = torch.from_numpy(render(path, list(indices)))
    else:
        depth = _read_images(path, indices, num_frames)
    return resize_depth(depth, size_hw)


def resize_depth(depth: Float32[Tensor, "T H W"], size_hw: tuple[int, int]) -> Float32[Tensor, "T h w"]:
    """Resize depth by nearest neighbors. An average across an edge would be the depth of no surface."""
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
