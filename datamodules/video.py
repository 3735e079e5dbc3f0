"""Exact frames of a video file, a folder of images, several images, or frames in memory.

    video = Video("kitchen.mp4")
    frames = video.read([0, 40, 80])  # uint8 (3, 3, H, W)

`num_frames` counts the frames in the file, whatever its header states. Rotation metadata is applied: height, width and
frames are upright. Only frames that the requested ones depend on are decoded (`datamodules.video_file`).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image, ImageOps
from torch import Tensor

from datamodules.video_file import RGB, VideoError, VideoFile

VIDEO_SUFFIXES = (".mp4", ".mov", ".avi", ".mkv", ".webm")
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png")
EXIF_ORIENTATION = 0x0112
UNREADABLE_IMAGE = (OSError, SyntaxError, ValueError, Image.DecompressionBombError)  # of Pillow on damaged files


class Video:
    """A video file, a folder of .jpg/.png frames in natural order (frame 10000 after 9999), images, or a tensor.

    Args:
        path: The file or folder, or the image files, or the frames as bytes.

    Attributes:
        num_frames: Exact number of frames.
        height: Height of the upright frames in pixels.
        width: Width of the upright frames in pixels.
        times_s: Presentation time of each frame in seconds after the first; one frame per second unless it is a file.
        is_folder: Whether the frames are images in a folder.

    Raises:
        VideoError: Here or in `read`: a missing, truncated, zero-frame or audio-only file, a file that is not a video,
            an unreadable frame, frames of mixed sizes, a folder without frames.
    """

    def __init__(self, path: str | Path | Sequence[Path] | UInt8[Tensor, "N 3 H W"]) -> None:
        self._file: VideoFile | None = None
        self._frames = path if isinstance(path, Tensor) else None
        if isinstance(path, Tensor):
            self.path, self.is_folder = Path("frames"), False
            self.num_frames, _, self.height, self.width = path.shape
            self.times_s = [float(i) for i in range(self.num_frames)]
            return
        self.path = Path(path) if isinstance(path, (str, Path)) else path[0]
        self.is_folder = self.path.is_dir()
        if self.is_folder or not isinstance(path, (str, Path)):
            self._images = self._listed_images() if isinstance(path, (str, Path)) else list(path)
            self.num_frames = len(self._images)
            self.height, self.width = image_size(self._images[0])
            self.times_s = [float(i) for i in range(self.num_frames)]
        else:
            self._file = file = VideoFile(self.path)
            self.num_frames, self.height, self.width = file.num_frames, file.height, file.width
            self.times_s = file.times_s

    def read(self, indices: Sequence[int]) -> UInt8[Tensor, "T 3 H W"]:
        """Decode frames.

        Args:
            indices: Frames in the order of the result; they may repeat. Only these are held in memory.

        Raises:
            IndexError: An index outside 0 to num_frames - 1.
            VideoError: A frame can't be decoded.
        """
        rows_of: dict[int, list[int]] = {}
        for row, i in enumerate(indices):
            if not 0 <= i < self.num_frames:
                raise IndexError(f"{self.path}: no frame {i}, the video has {self.num_frames}")
            rows_of.setdefault(i, []).append(row)
        if self._frames is not None:
            return self._frames[list(indices)]
        frames = torch.empty((len(indices), 3, self.height, self.width), dtype=torch.uint8)
        for i, rgb in self._read_images(rows_of) if self._file is None else self._file.read(rows_of):
            if rgb.shape[:2] != (self.height, self.width):
                size = f"{rgb.shape[1]} x {rgb.shape[0]}, not {self.width} x {self.height}"
                raise VideoError(
                    f"{self.files([i])[0]}: frames of mixed sizes: frame {i} is {size}: resize or crop them to one size"
                )
            for row in rows_of[i]:
                frames[row] = torch.from_numpy(rgb).permute(2, 0, 1)
        return frames

    def files(self, indices: Sequence[int]) -> list[Path]:
        """The files that hold these frames: the video file, or an image of each."""
        return [self.path] if self._file is not None else [self._images[i] for i in indices]

    def _listed_images(self) -> list[Path]:
        images = [p for p in self.path.iterdir() if p.suffix.lower() in IMAGE_SUFFIXES and p.name[0] != "."]
        if not images:
            raise VideoError(f"{self.path}: no frames in this folder ({', '.join(IMAGE_SUFFIXES)})")
        return sorted(images, key=lambda image: natural_key(image.name))

    def _read_images(self, indices: Iterable[int]) -> Iterator[tuple[int, RGB]]:
        for i in indices:
            try:
                with Image.open(self._images[i]) as image:
                    upright = ImageOps.exif_transpose(image) if image.format == "JPEG" else image
                    yield i, np.array(upright.convert("RGB"))
            except UNREADABLE_IMAGE as error:
                raise _unreadable(self._images[i]) from error


def natural_key(name: str) -> list[tuple[bool, int, str]]:
    """Sort key of natural order: "frame_2", "frame_9999", "frame_10000"."""
    parts = re.split(r"([0-9]+)", name)
    return [(i % 2 == 1, int(part) if i % 2 else 0, part) for i, part in enumerate(parts)]


def companion_name(video: Path) -> str:
    """Stem of the files beside a video: its name without the suffix, or the whole name of a folder."""
    return video.name if video.is_dir() else video.stem


def image_size(path: Path) -> tuple[int, int]:
    """Height and width of the upright image in pixels, from its header.

    Raises:
        VideoError: The file is not an image.
    """
    try:
        with Image.open(path) as image:
            width, height = image.size
            # orientations 5 to 8 swap the sides; reading the EXIF of a PNG would decode it
            sideways = image.format == "JPEG" and image.getexif().get(EXIF_ORIENTATION, 1) >= 5
    except UNREADABLE_IMAGE as error:
        raise _unreadable(path) from error
    return (width, height) if sideways else (height, width)


def _unreadable(path: Path) -> VideoError:
    return VideoError(f"{path}: unreadable frame: remove it or extract it again")


def even_steps(total: int, n: int) -> list[int]:
    """At most n integers at even steps from 0 to total - 1, rounded down."""
    return np.unique(np.linspace(0, total - 1, min(total, n), dtype=int)).tolist()
