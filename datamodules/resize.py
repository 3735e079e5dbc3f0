"""Frame sizes and resizing of qwen-vl-utils 0.0.14 (inference) and of Spatial-MLLM's training script.

The released checkpoints are evaluated with the defaults of `PixelBounds`, and were trained with
`PixelBounds(293216, 324576, resize_backend="pillow")`.
"""

from __future__ import annotations

import io
import math
import sys
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image
from torch import Tensor
from torch.nn import functional as F
from torchvision.transforms.v2 import InterpolationMode, functional

from zoo.cameras.scene_geometry import Window
from zoo.configuration import Configurable
from zoo.errors import InputError, check_choice
from zoo.sequences.layout import SPATIAL_MERGE_SIZE

TOKEN_PX = 28  # side of Qwen2.5-VL's tokens: two patches of 14 pixels; Qwen3-VL's are 32
FOLDER_MIN_TOKENS, FOLDER_MAX_TOKENS = 4, 16384  # bounds of the first of two resizes, in tokens of twice the side
MAX_ASPECT_RATIO = 200
GRAY = 127
CHUNK = 8  # frames resized at once, to limit the memory of float copies


def smart_resize(
    height: int, width: int, *, factor: int = TOKEN_PX, min_pixels: int, max_pixels: int | float
) -> tuple[int, int]:
    """Round (height, width) to multiples of `factor` with an area in [min_pixels, max_pixels].

    The aspect ratio is preserved as closely as possible. Source: `smart_resize` of qwen-vl-utils.

    Args:
        height: Height in pixels.
        width: Width in pixels.
        factor: Divisor of both sides.
        min_pixels: Smallest area.
        max_pixels: Largest area.

    Returns:
        Height and width in pixels.

    Raises:
        ValueError: One side is more than 200 times the other.
    """
    if max(height, width) > MAX_ASPECT_RATIO * min(height, width):
        limit = f"one side is more than {MAX_ASPECT_RATIO} times the other"
        raise ValueError(f"a frame of {width} x {height} pixels can't be resized, {limit}: crop it")
    rounded_h = max(factor, round(height / factor) * factor)
    rounded_w = max(factor, round(width / factor) * factor)
    if rounded_h * rounded_w > max_pixels:
        shrink = math.sqrt(height * width / max_pixels)
        return (
            max(factor, math.floor(height / shrink / factor) * factor),
            max(factor, math.floor(width / shrink / factor) * factor),
        )
    if rounded_h * rounded_w < min_pixels:
        grow = math.sqrt(min_pixels / (height * width))
        return math.ceil(height * grow / factor) * factor, math.ceil(width * grow / factor) * factor
    return rounded_h, rounded_w


@dataclass(frozen=True)
class PixelBounds:
    """Bounds on the number of pixels of a resized frame. The defaults are those of the official inference.

    Tiny models set their own bounds, so that small frames are not enlarged to the official minimum.

    Args:
        min_pixels: Minimum per frame.
        max_pixels: Maximum per frame.
        total_pixels: Maximum per clip. Long clips get smaller frames.
        legacy_folder_resize: Resize the frames of a folder to multiples of two tokens first, as qwen-vl-utils does.
        resize_backend: Bicubic filter: "torchvision" (official inference) or "pillow" (official training). Single
            pixels differ by one level.
    """

    min_pixels: int = 128 * TOKEN_PX**2
    max_pixels: int = 768 * TOKEN_PX**2
    total_pixels: int = 115_200 * TOKEN_PX**2
    legacy_folder_resize: bool = True
    resize_backend: Literal["torchvision", "pillow"] = "torchvision"

    def frame_size(self, height: int, width: int, num_frames: int, token_px: int = TOKEN_PX) -> tuple[int, int]:
        """Return height and width in pixels of the resized frames of a clip."""
        # the factor 2: two frames share a temporal patch; the factor 1.05 keeps the maximum above the minimum
        largest = min(self.max_pixels, self.total_pixels / num_frames * 2)
        largest = max(largest, int(self.min_pixels * 1.05))
        return smart_resize(height, width, factor=token_px, min_pixels=self.min_pixels, max_pixels=largest)


def bounds_of_images(given: PixelBounds | None, image_pixels: tuple[int, int] | None) -> PixelBounds | None:
    """Return the given bounds, or the bounds of the model's own processor. None if the model resizes images."""
    if given is not None or image_pixels is None:
        return given
    return PixelBounds(*image_pixels, total_pixels=sys.maxsize, legacy_folder_resize=False)


def resize_frames(
    frames: UInt8[Tensor, "T 3 H W"],
    bounds: PixelBounds | None = None,
    *,
    is_folder: bool = False,
    token_px: int = TOKEN_PX,
    size: tuple[int, int] | None = None,
) -> UInt8[Tensor, "T 3 h w"]:
    """Resize the frames of one clip within `bounds`, bit for bit as the official code.

    Args:
        frames: Frames of one clip.
        bounds: Pixel bounds. None uses the official ones.
        is_folder: Whether the frames come from a folder of images. The official code resizes these twice, first to
            multiples of 56 with Pillow: 480 x 640 becomes 504 x 616 from a folder, and 476 x 644 from a video file.
            `PixelBounds(legacy_folder_resize=False)` treats both alike.
        token_px: Side of a visual token in pixels. Both sides of a frame become multiples of it.
        size: Height and width in pixels of the result, in place of those within `bounds`.

    Returns:
        Resized frames.
    """
    bounds = bounds or PixelBounds()
    num_frames, _, height, width = frames.shape
    if is_folder and bounds.legacy_folder_resize:
        factor = 2 * token_px
        least, most = FOLDER_MIN_TOKENS * factor**2, FOLDER_MAX_TOKENS * factor**2
        first = smart_resize(height, width, factor=factor, min_pixels=least, max_pixels=most)
        frames = resize_pillow(frames, first)
    size = size or bounds.frame_size(frames.shape[-2], frames.shape[-1], num_frames, token_px)
    if size == tuple(frames.shape[-2:]):
        return frames
    resize = resize_pillow if bounds.resize_backend == "pillow" else _resize_bicubic
    return torch.cat([resize(chunk, size) for chunk in frames.split(CHUNK)])


def _resize_bicubic(frames: Tensor, size: tuple[int, int]) -> Tensor:
    # float, because torchvision's uint8 kernel clamps between its two passes and is up to 10 levels off
    resized = functional.resize(frames.float(), list(size), interpolation=InterpolationMode.BICUBIC, antialias=True)
    return resized.round_().clamp_(0, 255).to(torch.uint8)


def resize_pillow(frames: UInt8[Tensor, "T 3 H W"], size: tuple[int, int]) -> UInt8[Tensor, "T 3 h w"]:
    """Resize frames with Pillow's bicubic filter."""
    height, width = size
    images = (Image.fromarray(frame.permute(1, 2, 0).numpy()) for frame in frames)
    resized = [np.array(image.resize((width, height), Image.Resampling.BICUBIC)) for image in images]
    return torch.from_numpy(np.stack(resized)).permute(0, 3, 1, 2).contiguous()


def resize_part(frames: UInt8[Tensor, "T 3 H W"], window: Window, size: tuple[int, int]) -> UInt8[Tensor, "T 3 h w"]:
    """Resize a part of frames with Pillow's bicubic filter. Outside of the frames it is gray.

    Args:
        frames: The whole frames.
        window: The part, in frames of any size.
        size: Height and width in pixels of the result.
    """
    shape, scale = frames.shape[-2:], frames.shape[-2] / window.height
    starts = [window.top * scale, window.left * scale]
    stops = [starts[0] + window.rows * scale, starts[1] + window.columns * scale]
    before = [max(0, math.ceil(-start)) for start in starts]
    after = [max(0, math.ceil(stop - side)) for stop, side in zip(stops, shape, strict=True)]
    padded = F.pad(frames, (before[1], after[1], before[0], after[0]), value=GRAY)
    (top, bottom), (left, right) = (
        [min(max(end + margin, 0), side) for end in (start, stop)]
        for start, stop, margin, side in zip(starts, stops, before, padded.shape[-2:], strict=True)
    )
    images = (Image.fromarray(frame.permute(1, 2, 0).numpy()) for frame in padded)
    box = (left, top, right, bottom)
    resized = [np.array(image.resize(size[::-1], Image.Resampling.BICUBIC, box=box)) for image in images]
    return torch.from_numpy(np.stack(resized)).permute(0, 3, 1, 2).contiguous()


# ---- Images of VG-LLM, SpatialStack and GeoThinker: two sizes for the vision and the geometry encoder ----------------

GEOMETRY_PATCH = 14  # side of VGGT's patches in pixels
WIDTH = 518  # width of VG-LLM's images in pixels


class ResizedStills(NamedTuple):
    """Images in the sizes for the vision encoder and for the geometry encoder.

    Attributes:
        frames: Input of the vision encoder.
        geometry_frames: Input of the geometry encoder. Its patches lie under the vision encoder's, see
            `zoo.geometry.base.covers`.
        window: The part of the images that `frames` show, which crops their cameras and depth. None is the whole image.
        tower_window: The part of `geometry_frames` that `frames` show, which crops predicted cameras and depth. None is
            the whole image.
    """

    frames: UInt8[Tensor, "S 3 h w"]
    geometry_frames: UInt8[Tensor, "S 3 H W"]
    window: Window | None = None
    tower_window: Window | None = None


class StillResize(Configurable, ABC):
    """Resize images for a model whose geometry encoder and vision encoder see different images.

    Args:
        jpeg: First compress each image as a JPEG of Pillow's default quality, as published evaluations of images do.
            They do not compress the frames of a video.
    """

    def __init__(self, jpeg: bool = False) -> None:
        self.jpeg = jpeg

    def __call__(self, pictures: UInt8[Tensor, "S 3 H W"], token_px: int) -> ResizedStills:
        """Resize images of one size.

        Args:
            pictures: Images of a scene.
            token_px: Side of a visual token in pixels.
        """
        return self.resize(compressed(pictures) if self.jpeg else pictures, token_px)

    @abstractmethod
    def resize(self, pictures: UInt8[Tensor, "S 3 H W"], token_px: int) -> ResizedStills:
        """Resize images of one size."""


class FixedWidthStills(StillResize):
    """Resize images to 518 pixels in width and at most 518 in height, as VG-LLM and SpatialStack's training do.

    The height is the nearest multiple of 14 pixels. Taller images are cropped to the middle. The vision encoder sees
    the image without the right and bottom edges that fill no token. The geometry encoder sees the whole image. If the
    two encoders' patches have different sizes, the geometry encoder instead sees the original image, resized to 14
    pixels for each patch of the vision encoder. It then shows a slightly different part of the image.

    Args:
        jpeg: See `StillResize`.
    """

    def scale(self, pictures: UInt8[Tensor, "S 3 H W"], token_px: int) -> tuple[UInt8[Tensor, "S 3 h w"], Window]:
        """Return images of the fixed width, and the part of the scaled images that tokens fill."""
        height, width = pictures.shape[-2:]
        scaled_height = max(1, round(height * WIDTH / width / GEOMETRY_PATCH)) * GEOMETRY_PATCH
        scaled = resize_pillow(pictures, (scaled_height, WIDTH))
        top = max(0, scaled.shape[-2] - WIDTH) // 2
        whole = scaled[..., top : top + WIDTH, :]
        rows, columns = (side // token_px * token_px for side in whole.shape[-2:])
        if not rows:
            picture = f"a picture of {width} x {height} pixels"
            raise InputError(f"{picture} has no row of tokens at a width of {WIDTH}: crop it")
        return whole, Window(scaled_height, WIDTH, top, 0, rows, columns)

    def resize(self, pictures: UInt8[Tensor, "S 3 H W"], token_px: int) -> ResizedStills:
        whole, window = self.scale(pictures, token_px)
        rows, columns = window.rows, window.columns
        frames = whole[..., :rows, :columns].contiguous()
        if token_px == SPATIAL_MERGE_SIZE * GEOMETRY_PATCH:
            return ResizedStills(frames, whole, window, Window(whole.shape[-2], WIDTH, 0, 0, rows, columns))
        return ResizedStills(frames, under_patches(pictures, frames, token_px), window, window)


class WholeStills(FixedWidthStills):
    """Resize images as `FixedWidthStills`, but show them to the geometry encoder whole, as GeoThinker does.

    The two classes differ where patches of the two encoders have different sizes. The geometry encoder then sees
    another number of patches, which `GeoThinkerFusion` resizes to the tokens.

    Args:
        fit: How the vision encoder's images get sides that tokens fill if the patches have different sizes: they are
            cropped at the right and bottom, as GeoThinker on Qwen3-VL does in training, or resized with Pillow's
            bicubic filter, as in its evaluations.
        jpeg: See `StillResize`.
    """

    def __init__(self, fit: Literal["crop", "resize"] = "crop", jpeg: bool = False) -> None:
        super().__init__(jpeg)
        check_choice("fit", fit, Literal["crop", "resize"])
        self.fit = fit

    def resize(self, pictures: UInt8[Tensor, "S 3 H W"], token_px: int) -> ResizedStills:
        whole, window = self.scale(pictures, token_px)
        height, width = whole.shape[-2:]
        if self.fit == "crop" or token_px == SPATIAL_MERGE_SIZE * GEOMETRY_PATCH:
            frames = whole[..., : window.rows, : window.columns].contiguous()
            return ResizedStills(frames, whole, window, Window(height, width, 0, 0, window.rows, window.columns))
        frames = resize_pillow(whole, (window.rows, window.columns))
        return ResizedStills(frames, whole, window._replace(rows=height, columns=width))


class OriginalStills(StillResize):
    """Resize images by the model's processor, as in SpatialStack's evaluations.

    The geometry encoder sees the original images, resized to 14 pixels for each patch of the vision encoder.

    Args:
        min_pixels: Minimum per image.
        max_pixels: Maximum per image.
        jpeg: See `StillResize`.
    """

    def __init__(self, min_pixels: int = 200_704, max_pixels: int = 1_605_632, jpeg: bool = False) -> None:
        super().__init__(jpeg)
        self.min_pixels, self.max_pixels = min_pixels, max_pixels

    def resize(self, pictures: UInt8[Tensor, "S 3 H W"], token_px: int) -> ResizedStills:
        bounds = {"min_pixels": self.min_pixels, "max_pixels": self.max_pixels}
        size = smart_resize(pictures.shape[-2], pictures.shape[-1], factor=token_px, **bounds)
        # on bytes, as in the processor of transformers 5
        frames = functional.resize(pictures, list(size), interpolation=InterpolationMode.BICUBIC, antialias=True)
        return ResizedStills(frames, under_patches(pictures, frames, token_px))


def under_patches(
    pictures: UInt8[Tensor, "S 3 H W"], frames: UInt8[Tensor, "S 3 h w"], token_px: int
) -> UInt8[Tensor, "S 3 height width"]:
    """Resize images to 14 pixels for each patch of the vision encoder."""
    patch = token_px // SPATIAL_MERGE_SIZE
    rows, columns = (side // patch * GEOMETRY_PATCH for side in frames.shape[-2:])
    return resize_pillow(pictures, (rows, columns))


def compressed(pictures: UInt8[Tensor, "S 3 H W"]) -> UInt8[Tensor, "S 3 H W"]:
    """Compress images as JPEGs of Pillow's default quality, and decode them."""
    found = []
    for picture in pictures:
        buffer = io.BytesIO()
        Image.fromarray(picture.permute(1, 2, 0).numpy()).save(buffer, format="JPEG")
        found.append(np.array(Image.open(buffer).convert("RGB")))
    return torch.from_numpy(np.stack(found)).permute(0, 3, 1, 2).contiguous()
