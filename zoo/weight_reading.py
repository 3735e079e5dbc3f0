"""When the weights of a model are read from files: as it is built, once it is sharded, or never."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor, nn

Reading = Callable[[], None]  # copies weights from files into a model
only_shapes: ContextVar[bool] = ContextVar("only_shapes", default=False)  # see `shapes_only`
_waiting: ContextVar[list[Reading] | None] = ContextVar("waiting", default=None)  # see `weights_later`


@contextmanager
def weights_later(waiting: list[Reading]) -> Iterator[None]:
    """Builds models whose released weights are on the meta device until each process holds its shard of them.

    Args:
        waiting: gets the readings that fill them, to be called in order.
    """
    token = _waiting.set(waiting)
    try:
        yield
    finally:
        _waiting.reset(token)


@contextmanager
def shapes_only() -> Iterator[None]:
    """Builds models on the meta device, by their configs alone: weights are neither downloaded nor looked for."""
    token = only_shapes.set(True)
    try:
        with torch.device("meta"), weights_later([]):
            yield
    finally:
        only_shapes.reset(token)


def are_weights_later() -> bool:
    """Whether models are built within `weights_later`."""
    return _waiting.get() is not None


def read_weights(reading: Reading) -> None:
    """Reads weights now, or within `weights_later` when the model is sharded."""
    waiting = _waiting.get()
    if waiting is None:
        reading()
    else:
        waiting.append(reading)


@contextmanager
def meta_parameters() -> Iterator[None]:
    """Puts the parameters of new modules on the meta device; buffers, which no file restores, are computed."""
    every: Any = nn.Module
    register = every.register_parameter

    def on_meta(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        if parameter is not None and not parameter.is_meta:
            parameter = nn.Parameter(parameter.to("meta"), parameter.requires_grad)
        register(module, name, parameter)

    every.register_parameter = on_meta
    try:
        yield
    finally:
        every.register_parameter = register


class TensorsOf(Mapping[str, Tensor]):
    """The tensors of a module by the names of `state_dict`, looked up when they are accessed.

    Adapters change the names afterwards, and sharding replaces the tensors.

    Args:
        module: the module.
        without: names to leave out.
    """

    def __init__(self, module: nn.Module, without: Collection[str] = ()) -> None:
        self._places = {
            f"{prefix}.{name}".lstrip("."): (part, name)
            for prefix, part in module.named_modules()
            for name, tensor in {**part._parameters, **part._buffers}.items()
            if tensor is not None and name not in part._non_persistent_buffers_set
        }
        for name in without:
            del self._places[name]

    def __getitem__(self, name: str) -> Tensor:
        part, attribute = self._places[name]
        tensor: Tensor = getattr(part, attribute)
        return tensor.detach()

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)
