"""Base class of values made of tensors, and checks of the shapes that parts return."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

from zoo.errors import InputError

Change = Callable[[Tensor], Tensor]
Value = TypeVar("Value", bound="Movable")


class Movable:
    """Base class of values whose attributes are tensors, other such values, lists of them, and host data.

    Subclasses that hold floats are plain classes and no dataclasses or mappings, whose tensors Lightning's precision
    plugins and FSDP would cast: poses in bfloat16 are useless.
    """

    def map(self: Value, change: Change) -> Value:
        """Return a copy in which each tensor is changed; Python values are kept on the host."""
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


# ---- What parts return, checked where they meet: an error names the part and the shape that is expected of it -------
# Shapes are read on the host: a check makes nothing wait


def check_shape(part: object, what: str, value: Any, *expected: int | None) -> None:
    """Check the shape of a tensor that a part returns.

    Args:
        part: The part, whose class the error names.
        what: What it returns, with the names of its dimensions, such as "visual tokens (t, n, D)".
        value: What it has returned.
        expected: The length of each dimension; None is any.

    Raises:
        InputError: It is no tensor, or of another shape.

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
    """Check the number of values that a part returns; raise an InputError that names both."""
    if len(values) != expected:
        raise InputError(f"{type(part).__name__} returned {len(values)} {what}, expected {expected}")
