"""Values made of tensors, which move between devices as one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor

Change = Callable[[Tensor], Tensor]
Value = TypeVar("Value", bound="Movable")


class Movable:
    """Base class of values whose attributes are tensors, other such values, lists of them, and host data.

    Subclasses that hold floats are plain classes and no dataclasses or mappings, whose tensors Lightning's precision
    plugins and FSDP would cast: poses in bfloat16 are useless.
    """

    def map(self: Value, change: Change) -> Value:
        """Return a copy in which each tensor is changed; number of the host stay."""
        other = object.__new__(type(self))
        vars(other).update({name: _mapped(value, change) for name, value in vars(self).items()})
        return other

    def to(self: Value, device: torch.device | str, non_blocking: bool = False) -> Value:
        """Copy the tensors to a device.

        Args:
            device: The device.
            non_blocking: Don't wait for the copies, which takes pinned memory.
        """
        return self.map(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self: Value) -> Value:
        """Copy the tensors to pinned memory, from which a GPU copies without a wait."""
        return self.map(Tensor.pin_memory)


def _mapped(value: Any, change: Change) -> Any:
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, list):
        return [_mapped(each, change) for each in value]
    return value.map(change) if hasattr(value, "map") else value
