"""What parts return, checked where they meet: an error names the part and the shape that is expected of it.

Shapes are read on the host: a check makes nothing wait.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from zoo.errors import InputError


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
