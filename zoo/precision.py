"""Precision of geometry (float32 or better for any precision of the network) and of answers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from jaxtyping import Float
from torch import Tensor

# by Lightning's names of precisions
AUTOCAST = {"bf16-mixed": torch.bfloat16, "bf16": torch.bfloat16, "16-mixed": torch.float16, "16": torch.float16}


def to_float32(tensor: Tensor) -> Tensor:
    """Cast to float32. float64 is kept."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def full_precision(device: torch.device) -> AbstractContextManager:
    """Disable autocast, which would compute matrix products of poses in half precision."""
    # torch has no autocast for the meta device, and there is no data to round
    return nullcontext() if device.type == "meta" else torch.autocast(device.type, enabled=False)


def answer_precision(device: torch.device, precision: str | None) -> AbstractContextManager:
    """Return the autocast context for answers in `test`, `predict`, `SpatialVLM.answer` and harnesses.

    An autocast that is already enabled, such as a Trainer's, is kept. Inside, each trained float32 weight is cast once
    for all forward passes. Lightning turns this caching off, and an answer of 32 tokens would then cast the weights 32
    times, which takes longer than using them. Frozen weights are never cached, so load them in bfloat16.

    Args:
        device: Device of the model.
        precision: Precision of the model's run, with the values of `--trainer.precision`. None is bf16-mixed on a GPU
            and 32-true elsewhere.
    """
    if device.type == "meta":
        return nullcontext()
    name = precision or ("bf16-mixed" if device.type == "cuda" else "32-true")
    is_on = torch.is_autocast_enabled(device.type)
    dtype = torch.get_autocast_dtype(device.type) if is_on else AUTOCAST.get(name)
    return nullcontext() if dtype is None else torch.autocast(device.type, dtype, cache_enabled=True)


@contextmanager
def highest_matmul_precision(device: torch.device) -> Iterator[None]:
    """Disable autocast, and TF32 for float32 matrix products.

    Lightning recommends `torch.set_float32_matmul_precision("high")` on GPUs with TF32. TF32 keeps ten bits of a pose,
    an error of centimeters at ten meters.
    """
    allowed = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        with full_precision(device):
            yield
    finally:
        torch.set_float32_matmul_precision(allowed)


def exact_bmm(a: Float[Tensor, "n rows w"], b: Float[Tensor, "n w columns"]) -> Float[Tensor, "n rows columns"]:
    """Multiply within `highest_matmul_precision`. Compiled code can't enter it, so it calls an operator that does."""
    return _exact_bmm(a, b) if torch.compiler.is_compiling() else torch.bmm(a, b)


@torch.library.custom_op("zoo::exact_bmm", mutates_args=(), schema="(Tensor a, Tensor b) -> Tensor")
def _exact_bmm(a: Tensor, b: Tensor) -> Tensor:
    with highest_matmul_precision(a.device):
        return torch.bmm(a, b)


@_exact_bmm.register_fake
def _(a: Tensor, b: Tensor) -> Tensor:
    return a.new_empty(len(a), a.shape[1], b.shape[2])
