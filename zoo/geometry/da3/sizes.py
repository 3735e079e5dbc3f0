"""The size to which the official input processor resizes an image."""

from __future__ import annotations

from typing import Literal

from zoo.errors import check_choice
from zoo.geometry.da3.trunk import PATCH_SIZE

ResizeMethod = Literal["upper_bound_resize", "lower_bound_resize", "upper_bound_crop", "lower_bound_crop"]


def official_size(
    height: int, width: int, process_res: int = 504, method: ResizeMethod = "upper_bound_resize"
) -> tuple[int, int]:
    """Height and width after the official processing.

    Args:
        height: Of the image in pixels.
        width: Of the image in pixels.
        process_res: The longest side (`upper_bound`) or the shortest (`lower_bound`) before sides become multiples
            of 14.
        method: `resize` goes to the nearest multiple, `crop` to the next lower one, which can be 0.

    Raises:
        InputError: An unknown method.
    """
    check_choice("method", method, ResizeMethod)
    side = max(height, width) if method.startswith("upper") else min(height, width)
    scaled = [max(1, round(each * (process_res / side))) for each in (height, width)]
    if method.endswith("crop"):
        rows, columns = (each // PATCH_SIZE * PATCH_SIZE for each in scaled)
    else:  # ties go up
        rows, columns = (max(1, (each + PATCH_SIZE // 2) // PATCH_SIZE) * PATCH_SIZE for each in scaled)
    return rows, columns
