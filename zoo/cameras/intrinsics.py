"""Intrinsics in units of the image size, and in pixels."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor


def normalize_intrinsics(
    K_px: Float[Tensor, "*batch 3 3"], width: int | float, height: int | float
) -> Float[Tensor, "*batch 3 3"]:
    """Normalize corner-origin pixel intrinsics by the image size, as in PRoPE (arXiv 2507.10496); drops skew.

    The identity is then a centered camera with a field of view of 53 degrees in both directions.

    Raises:
        ValueError: The width or height is not positive.

    Example:
        >>> import torch
        >>> K_px = torch.tensor([[320.0, 0.0, 320.0], [0.0, 480.0, 240.0], [0.0, 0.0, 1.0]])
        >>> normalize_intrinsics(K_px, width=640, height=480).tolist()
        [[0.5, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]]
    """
    if not (width > 0 and height > 0):
        raise ValueError(f"the size of an image must be positive, got {width} x {height}")
    normalized = torch.zeros_like(K_px)
    for axis, size in enumerate((width, height)):
        normalized[..., axis, axis] = K_px[..., axis, axis] / size
        normalized[..., axis, 2] = K_px[..., axis, 2] / size - 0.5
    normalized[..., 2, 2] = 1.0
    return normalized


def intrinsics_in_pixels(
    K_normalized: Float[Tensor, "*batch 3 3"], width: int | float | Tensor, height: int | float | Tensor
) -> Float[Tensor, "*batch 3 3"]:
    """Convert normalized intrinsics to corner-origin pixel intrinsics, the inverse of `normalize_intrinsics`.

    Args:
        K_normalized: Intrinsics normalized by the image size.
        width: Of the images in pixels, or in another unit, such as tokens; one, or one per camera.
        height: See `width`.
    """
    K_px = torch.zeros_like(K_normalized)
    for axis, size in enumerate((width, height)):
        K_px[..., axis, axis] = K_normalized[..., axis, axis] * size
        K_px[..., axis, 2] = (K_normalized[..., axis, 2] + 0.5) * size
    K_px[..., 2, 2] = 1.0
    return K_px
