"""Tensors that several processes hold in shards (`DTensor`)."""

from __future__ import annotations

from torch import Tensor
from torch.distributed.tensor import DTensor, distribute_tensor


def whole(tensor: Tensor) -> Tensor:
    """Return the whole tensor, on each process; a collective where it is sharded, so every process must call it."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def local(tensor: Tensor) -> Tensor:
    """Return what this process holds of a tensor."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def shard_like(tensor: Tensor, target: Tensor) -> Tensor:
    """Return the part of a whole tensor that this process holds of `target`; no process communicates."""
    if not isinstance(target, DTensor) or isinstance(tensor, DTensor):
        return tensor
    on_device = tensor.to(target.device).reshape(target.shape)
    return distribute_tensor(on_device, target.device_mesh, target.placements, src_data_rank=None)
