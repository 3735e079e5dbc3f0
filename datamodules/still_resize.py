"""How VG-LLM and SpatialStack resize still images, bit for bit: the tower and the geometry encoder see two sizes."""

from __future__ import annotations

import io
from abc import ABC, abstractmethod
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import InterpolationMode, functional

from datamodules.resize import resize_pillow, smart_resize
from zoo.cameras.window import Window
from zoo.configuration import Configurable
from zoo.errors import InputError
from zoo.sequences.visual_grid import SPATIAL_MERGE_SIZE

GEOMETRY_PATCH = 14  # pixels of VGGT's patches
WIDTH = 518  # of VG-LLM's pictures


class ResizedStills(NamedTuple):
    """Still images as the vision tower and the geometry encoder see them.

    Attributes:
        frames: The tower's.
        geometry_frames: The encoder's, whose patches lie under the tower's: see `zoo.geometry.base.covers`.
        window: What of the pictures the tower's frames show, for their cameras and depth; None is everything.
        tower_window: What of the encoder's frames the tower's show, for predicted cameras and depth; None is
            everything.
    """

    frames: UInt8[Tensor, "S 3 h w"]
    geometry_frames: UInt8[Tensor, "S 3 H W"]
    window: Window | None = None
    tower_window: Window | None = None


class StillResize(Configurable, ABC):
    """Resize still images for a model whose geometry encoder sees other pictures than its vision tower.

    Args:
        jpeg: Compress each picture as a JPEG of Pillow's default quality first, as published evaluations of pictures
            do; they don't do so with the frames of a video.
    """

    def __init__(self, jpeg: bool = False) -> None:
        self.jpeg = jpeg

    def __call__(self, pictures: UInt8[Tensor, "S 3 H W"], token_px: int) -> ResizedStills:
        """Resize pictures of one size.

        Args:
            pictures: Of a scene.
            token_px: Side of a visual token in pixels.
        """
        return self.resize(compressed(pictures) if self.jpeg else pictures, token_px)

    @abstractmethod
    def resize(self, pictures: UInt8[Tensor, "S 3 H W"], token_px: int) -> ResizedStills:
        """Resize pictures of one size."""


class FixedWidthStills(StillResize):
    """VG-LLM's pictures, and those of SpatialStack's training: 518 pixels wide, and at most as high.

    The height is the nearest multiple of 14 pixels; of taller pictures the middle is kept. The tower sees them without
    the right and bottom edge that fills no token. The encoder sees them whole; for a tower with other patches than its
    own it sees the original pictures instead, at 14 pixels for each of the tower's patches, and so not quite the same
    part of them.

    Args:
        jpeg: See `StillResize`.
    """

    def resize(self, pictures: UInt8[Tensor, "S 3 H W"], token_px: int) -> ResizedStills:
        height, width = pictures.shape[-2:]
        scaled_height = max(1, round(height * WIDTH / width / GEOMETRY_PATCH)) * GEOMETRY_PATCH
        scaled = resize_pillow(pictures, (scaled_height, WIDTH))
        top = max(0, scaled.shape[-2] - WIDTH) // 2
        whole = scaled[..., top : top + WIDTH, :]
        rows, columns = (side // token_px * token_px for side in whole.shape[-2:])
        if not rows:
            picture = f"a picture of {width} x {height} pixels"
            raise InputError(f"{picture} has no row of tokens at a width of {WIDTH}: crop it")
        window = Window(scaled_height, WIDTH, top, 0, rows, columns)
        frames = scaled[(..., *window.place)].contiguous()
        if token_px == SPATIAL_MERGE_SIZE * GEOMETRY_PATCH:
            return ResizedStills(frames, whole, window, Window(whole.shape[-2], WIDTH, 0, 0, rows, columns))
        return ResizedStills(frames, under_patches(pictures, frames, token_px), window, window)


class OriginalStills(StillResize):
    """SpatialStack's pictures in evaluations: the tower's by the model's processor, the encoder's from the original.

    Args:
        min_pixels: Minimum per picture.
        max_pixels: Maximum per picture.
        jpeg: See `StillResize`.
    """

    def __init__(self, min_pixels: int = 200_704, max_pixels: int = 1_605_632, jpeg: bool = False) -> None:
        super().__init__(jpeg)
        self.min_pixels, self.max_pixels = min_pixels, max_pixels

    def resize(self, pictures: UInt8[Tensor, "S 3 H W"], token_px: int) -> ResizedStills:
        bounds = {"min_pixels": self.min_pixels, "max_pixels": self.max_pixels}
        size = smart_resize(pictures.shape[-2], pictures.shape[-1], factor=token_px, **bounds)
        # on bytes, as the processor of transformers 5
        frames = functional.resize(pictures, list(size), interpolation=InterpolationMode.BICUBIC, antialias=True)
        return ResizedStills(frames, under_patches(pictures, frames, token_px))


def under_patches(
    pictures: UInt8[Tensor, "S 3 H W"], frames: UInt8[Tensor, "S 3 h w"], token_px: int
) -> UInt8[Tensor, "S 3 height width"]:
    """Resize pictures to 14 pixels for each of the tower's patches."""
    patch = token_px // SPATIAL_MERGE_SIZE
    rows, columns = (side // patch * GEOMETRY_PATCH for side in frames.shape[-2:])
    return resize_pillow(pictures, (rows, columns))


def compressed(pictures: UInt8[Tensor, "S 3 H W"]) -> UInt8[Tensor, "S 3 H W"]:
    """Return pictures after a JPEG of Pillow's default quality."""
    found = []
    for picture in pictures:
        buffer = io.BytesIO()
        Image.fromarray(picture.permute(1, 2, 0).numpy()).save(buffer, format="JPEG")
        found.append(np.array(Image.open(buffer).convert("RGB")))
    return torch.from_numpy(np.stack(found)).permute(0, 3, 1, 2).contiguous()
