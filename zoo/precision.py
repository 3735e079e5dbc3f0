"""Precision of geometry: float32 or better, whatever the precision of the network around it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import Tensor


def to_float32(tensor: Tensor) -> Tensor:
    """Cast to float32; float64 is kept."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def full_precision(device: torch.device) -> AbstractContextManager:
    """Disable autocast, which would compute matrix products of poses in half precision."""
    # torch has no autocast for the meta device, where there is no data to round either
    return nullcontext() if device.type == "meta" else torch.autocast(device.type, enabled=False)


def cached_casts(device: torch.device) -> AbstractContextManager:
    """Under autocast, casts each trained float32 weight once for all forward passes within; Lightning turns that off.

    An answer of 32 tokens would cast them 32 times, which takes longer than to use them. Frozen weights are never kept:
    load them in bfloat16.
    """
    if device.type == "meta" or not torch.is_autocast_enabled(device.type):
        return nullcontext()
    return torch.autocast(device.type, torch.get_autocast_dtype(device.type), cache_enabled=True)


@contextmanager
def highest_matmul_precision(device: torch.device) -> Iterator[None]:
    """Disable autocast, and TF32 for float32 matrix products.

    Lightning recommends `torch.set_float32_matmul_precision("high")` on GPUs with TF32. TF32 keeps ten bits of a
    pose, which is an error of centimeters at ten meters.
    """
    allowed = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        with full_precision(device):
            yield
    finally:
        torch.set_float32_matmul_precision(allowed)
