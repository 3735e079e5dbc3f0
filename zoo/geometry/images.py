"""Images of the geometry networks: checks, and ImageNet's normalization."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from zoo.geometry.base import check_size

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
DARKEST, BRIGHTEST = -0.5, 2.0  # images are in 0..1, and resizing overshoots a little


def normalize(images: Float[Tensor, "*batch 3 H W"]) -> Float[Tensor, "*batch 3 H W"]:
    """Normalize by ImageNet's mean and standard deviation per channel."""
    mean, std = (
        torch.tensor(each, dtype=images.dtype).to(images.device, non_blocking=True)[:, None, None]
        for each in (IMAGENET_MEAN, IMAGENET_STD)
    )
    return (images - mean) / std


def check_images(images: Tensor, patch_size: int, model: str) -> None:
    """Checks that images have sides in multiples of the patch size, and are no bytes.

    Raises:
        ValueError: They don't; the message names the model.
    """
    check_size(images.shape[-2], images.shape[-1], patch_size)
    if not images.is_floating_point():
        raise ValueError(f"{model} needs images in 0..1, got {images.dtype}: divide by 255")


def check_range(images: Tensor, model: str) -> None:
    """Checks that images have values in 0..1, for which a GPU is waited: not for those that were bytes before.

    Raises:
        ValueError: They don't; the message names the model.
    """
    if not images.is_meta and ((images < DARKEST) | (images > BRIGHTEST)).any():
        low, high = torch.stack(images.aminmax()).tolist()
        raise ValueError(
            f"{model} needs images in 0..1, got {low:.4g} to {high:.4g}: divide by 255, or undo a normalization"
        )


def select_frames(values: Shaped[Tensor, "B S ..."], frames: Int[Tensor, "B chosen"]) -> Shaped[Tensor, "B chosen ..."]:
    """Select frames of each scene."""
    return values[torch.arange(len(frames), device=frames.device)[:, None], frames]
