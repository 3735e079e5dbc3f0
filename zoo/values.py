"""Base class of values that contain tensors, and shape checks for the outputs of parts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

from zoo.errors import InputError

Change = Callable[[Tensor], Tensor]
Value = TypeVar("Value", bound="Movable")


class Movable:
    """Base class of values whose attributes are tensors, other such values, lists of them, and Python values.

    Subclasses that hold floats must be plain classes. Lightning's precision plugins and FSDP would cast the tensors of
    dataclasses and mappings, and poses in bfloat16 are useless.
    """

    def map(self: Value, change: Change) -> Value:
        """Return a copy with each tensor changed. Python values are kept on the host."""
        other = object.__new__(type(self))
        vars(other).update({name: _mapped(value, change) for name, value in vars(self).items()})
        return other

    def to(self: Value, device: torch.device | str, non_blocking: bool = False) -> Value:
        """Copy the tensors to a device.

        Args:
            device: The device.
            non_blocking: Do not wait for the copies. This needs pinned memory.
        """
        return self.map(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self: Value) -> Value:
        """Copy the tensors to pinned memory, from which a GPU can copy without making the host wait."""
        return self.map(Tensor.pin_memory)


def _mapped(value: Any, change: Change) -> Any:
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, list):
        return [_mapped(each, change) for each in value]
    return value.map(change) if hasattr(value, "map") else value


# ---- Checks of the outputs of parts: an error names the part and the expected shape ---------------------------------
# Shapes are known to the host, so a check does not wait for a GPU


def check_shape(part: object, what: str, value: Any, *expected: int | None) -> None:
    """Check the shape of a tensor that a part returns.

    Args:
        part: The part, whose class the error names.
        what: Description of the output with the names of its dimensions, such as "visual tokens (t, n, D)".
        value: The returned value.
        expected: The length of each dimension. None is any.

    Raises:
        InputError: The value is not a tensor, or has another shape.

    Example:
        >>> import torch
        >>> check_shape(torch.nn.Linear(2, 3), "tokens (N, D)", torch.zeros(5, 2), None, 3)
        Traceback (most recent call last):
        ...
        zoo.errors.InputError: Linear returned tokens (N, D) of shape (5, 2), expected (N, 3)
    """
    found = tuple(value.shape) if isinstance(value, Tensor) else None
    is_alike = found is not None and len(found) == len(expected)
    if is_alike and all(length in (None, own) for own, length in zip(found or (), expected, strict=True)):
        return
    names = what[what.find("(") + 1 : what.rfind(")")].split(", ")
    wanted = ", ".join(str(length or name) for name, length in zip(names, expected, strict=False))
    returned = f"{what} of shape {found}" if found is not None else f"{type(value).__name__} as {what}"
    raise InputError(f"{type(part).__name__} returned {returned}, expected ({wanted})")


def check_count(part: object, what: str, values: Sequence[Any], expected: int) -> None:
    """Check the number of values that a part returns. The InputError names both numbers."""
    if len(values) != expected:
        raise InputError(f"{type(part).__name__} returned {len(values)} {what}, expected {expected}")
