"""Geometry is computed in float32 or better, whatever the precision of the network around it."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor


def wide(tensor: Tensor) -> Tensor:
    """The tensor in float32; float64 stays float64."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def full_precision(device: torch.device) -> AbstractContextManager:
    """Switches autocast off: it would compute matrix products of poses in half precision."""
    # the meta device has no autocast, and no numbers that could lose precision
    return nullcontext() if device.type == "meta" else torch.autocast(device.type, enabled=False)
