"""Counts, on the CPU, the calls for which the host would wait for a GPU.

At Python's level: a dispatch mode sees none of `tolist` and `cpu` of tensors that are on the CPU.
"""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

ROOT = Path(__file__).parents[2]
READS = {"tolist", "item", "numpy", "cpu", "__bool__", "__int__", "__float__", "__index__", "__array__", "__contains__"}
SIZES = {"nonzero", "unique", "unique_consecutive", "masked_select", "argwhere", "equal", "allclose", "bincount"}
INDEXES = {"__getitem__", "__setitem__"}


class Waits(TorchFunctionMode):
    """Counts the waits within, by their place in the project."""

    def __init__(self) -> None:
        super().__init__()
        self.found: Counter[str] = Counter()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", "")
        is_mask = name in INDEXES and _has_mask(args[1])
        if name in READS | SIZES or is_mask:
            self.found[f"{name} at {_place()}"] += 1
        return func(*args, **(kwargs or {}))

    @property
    def count(self) -> int:
        """All waits."""
        return self.found.total()


def _has_mask(index: Any) -> bool:
    if isinstance(index, Tensor):
        return index.dtype == torch.bool
    return isinstance(index, tuple) and any(isinstance(each, Tensor) and each.dtype == torch.bool for each in index)


def _place() -> str:
    """The innermost line of the project outside this file, which caused the call."""
    frame = sys._getframe(2)
    while frame is not None:
        file = Path(frame.f_code.co_filename)
        if file.is_relative_to(ROOT) and file != Path(__file__) and ".venv" not in file.parts:
            return f"{file.relative_to(ROOT)}:{frame.f_lineno}"
        frame = frame.f_back  # type: ignore[assignment]
    return "elsewhere"
