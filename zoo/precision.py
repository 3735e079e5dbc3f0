"""Geometry is computed in float32 or better, whatever the precision of the network around it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import Tensor


def to_float32(tensor: Tensor) -> Tensor:
    """The tensor in float32; float64 stays float64."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def full_precision(device: torch.device) -> AbstractContextManager:
    """Switches autocast off: it would compute matrix products of poses in half precision."""
    # the meta device has no autocast, and no numbers that could lose precision
    return nullcontext() if device.type == "meta" else torch.autocast(device.type, enabled=False)


@contextmanager
def highest_matmul_precision(device: torch.device) -> Iterator[None]:
    """`full_precision`, and float32 products that are exact whatever `torch.set_float32_matmul_precision` allows.

    Lightning suggests `high` where a GPU has TF32: of a pose that keeps ten bits, centimeters at ten meters.
    """
    allowed = torch.get_float32_matmul_precision()
    with full_precision(device):
        if allowed == "highest":
            yield
            return
        torch.set_float32_matmul_precision("highest")
        try:
            yield
        finally:
            torch.set_float32_matmul_precision(allowed)
