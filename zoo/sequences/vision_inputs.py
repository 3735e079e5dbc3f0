"""A vision tower's inputs beside the patches, computed from their grids on the CPU."""

from __future__ import annotations

from typing import Any

from jaxtyping import Int
from torch import Tensor

from zoo.movable import Movable


class Segments(Movable):
    """Runs of patches that attend to each other alone, such as windows or frames.

    Args:
        boundaries: The first patch of each run, and the number of patches.

    Attributes:
        boundaries: The same; `cu_seqlens` of FlashAttention.
        order: The order of patches that sorts the runs by length; None if all have one length.
        shapes: Number of runs, and patches of each, for each length in this order.
        longest: Patches of the longest run.
    """

    def __init__(self, boundaries: Int[Tensor, " runs_and_one"]) -> None:
        lengths = boundaries.diff()
        sizes, counts = lengths.unique(return_counts=True)  # in ascending order, as the sort below has them
        self.boundaries = boundaries
        self.shapes: list[tuple[int, int]] = list(zip(counts.tolist(), sizes.tolist(), strict=True))
        self.longest = max((length for _, length in self.shapes), default=0)
        is_one = len(self.shapes) == 1
        self.order = None if is_one else lengths.repeat_interleave(lengths).argsort(stable=True)


class VisionInputs(Movable):
    """The keyword arguments of a stock vision tower that follow from grids.

    Args:
        lengths: Visual tokens of each video or still image.
        tensors: Tensors and `Segments` by the names that the tower gives them.
        numbers: Numbers of the host, likewise.
    """

    def __init__(self, lengths: list[int], tensors: dict[str, Tensor | Segments], numbers: dict[str, int]) -> None:
        self.lengths, self.names, self.numbers = lengths, tuple(tensors), numbers
        self.values = list(tensors.values())

    def arguments(self) -> dict[str, Any]:
        """Return the keyword arguments, in a new dict: a tower takes them out of it."""
        return {**dict(zip(self.names, self.values, strict=True)), **self.numbers}
