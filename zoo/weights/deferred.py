"""Released weights that are read later: once a model is sharded, on another device, or never.

A part that reads released weights is built on the meta device, where parameters have a shape and no memory, and
`load_or_defer` reads them at once. Under `torch.device("meta")`, which is PyTorch's own way to build a model by its
shapes, it keeps the function that reads them instead, and no file is even opened: `plan` counts such models, and
`load_deferred` gives them memory and weights.

A model that FSDP2 shards has its released parts alone on the meta device (`SpatialVLM(defer_weights=True)`), and
Lightning's `configure_model` reads them into the shards. Not the whole model: PyTorch fills one by `reset_parameters`,
which knows nothing of parts' own seeds and first values, such as a last projection of zeros.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
from torch import Tensor, nn

from zoo.errors import InputError
from zoo.weights.filling import TensorsOf
from zoo.weights.lazy_tensors import Tensors, are_in_files, list_names
from zoo.weights.sharded_tensors import local

DEFERRED = "_deferred_loads"  # of a module: functions that fill it
M = TypeVar("M", bound=nn.Module)


def builds_shapes_only() -> bool:
    """Return whether new tensors are on the meta device, so that no weights are read."""
    return torch.get_default_device().type == "meta"


def load_or_defer(
    module: nn.Module,
    tensors: Tensors,
    fill: Callable[[], None],
    device: torch.device | None = None,
) -> None:
    """Give a module memory and weights, or under `torch.device("meta")` leaves both to `load_deferred`.

    Args:
        module: On the meta device; what has memory already keeps it.
        tensors: That it is filled with. Those in memory are copied at once, which checks their names and shapes.
        fill: Copies them into the module.
        device: Of the memory; None is that of new tensors.
    """
    if builds_shapes_only() and are_in_files(tensors):
        defer(module, fill)
        return
    len(tensors)  # opens the files: a fault of them is told before gigabytes are allocated
    device = device or torch.get_default_device()
    allocate(module, device)
    fill()
    _refuse_unread(module, [module], device)


def defer(module: nn.Module, fill: Callable[[], None]) -> None:
    """Leave the weights of a module on the meta device to `load_deferred`."""
    module.__dict__.setdefault(DEFERRED, []).append(fill)


def load_deferred(module: M) -> M:
    """Give all parts of a module their deferred weights, on the device of new tensors or in the shards they have.

    On the meta device nothing is copied: names and shapes are checked.

    Raises:
        InputError: Weights that are missing, or of another model, or that nothing reads.
    """
    filled, device = [], torch.get_default_device()
    for part in module.modules():
        if fills := part.__dict__.pop(DEFERRED, ()):
            allocate(part, device)
            for fill in fills:
                fill()
            filled.append(part)
    if filled:
        _refuse_unread(module, filled, device)
    return module


def _refuse_unread(module: nn.Module, filled: Sequence[nn.Module], device: torch.device) -> None:
    """Raise an InputError for weights of filled parts that are as `allocate` left them, or that are still shapes."""
    if device.type == "meta":
        return
    unread = [name for name, tensor in TensorsOf(module).items() if tensor.is_meta]
    for part in filled:
        own = ((f"{type(part).__name__}.{name}", local(tensor)) for name, tensor in TensorsOf(part).items())
        unread += [name for name, tensor in own if tensor.numel() and bool(tensor.flatten()[0].isnan())]
    if unread:
        raise InputError(
            f"{len(unread)} weights were built without values, and are in no file: {list_names(unread)}; build them "
            'under torch.device("cpu"), which gives them values'
        )


def build_deferred(build: Callable[[], M | None]) -> M | None:
    """Build a module and defer its weights; one with random weights, which no file restores, is built with them."""
    with torch.device("meta"):
        module = build()
    is_deferred = module is not None and any(DEFERRED in part.__dict__ for part in module.modules())
    return module if is_deferred else build()


def allocate(module: nn.Module, device: torch.device) -> None:
    """Give the parameters and saved buffers of a module on the meta device memory; tied weights stay tied.

    The memory is filled with NaN, by which weights that nothing reads are found. A buffer that no file restores is
    computed by whoever builds the module.
    """
    if device.type == "meta":
        return
    allocated: dict[Tensor, Tensor] = {}
    for part in module.modules():
        for tensors in (part._parameters, part._buffers):
            for name, tensor in tensors.items():
                if tensor is None or not tensor.is_meta or name in part._non_persistent_buffers_set:
                    continue
                if tensor not in allocated:
                    memory = torch.empty_like(tensor, device=device)
                    if memory.is_floating_point():
                        memory.fill_(torch.nan)
                    is_parameter = isinstance(tensor, nn.Parameter)
                    allocated[tensor] = nn.Parameter(memory, tensor.requires_grad) if is_parameter else memory
                tensors[name] = allocated[tensor]  # type: ignore[assignment]
