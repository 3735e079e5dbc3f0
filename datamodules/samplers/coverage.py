"""Space-aware sampling's two steps: points to voxels, and the frames that cover most of them.

Spatial-MLLM (arXiv 2505.23747), section 3.3. The official code holds sets of tuples; here a voxel is one integer, and
the voxels of a frame are marks in a table, with the same choices (timed in `benchmarks/sampling.py`).
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int
from torch import Tensor

CELLS = 20  # voxels along the shortest side of the scene
MINIMUM_CONFIDENCE = 0.1
TABLE = 1 << 22  # cells up to which marking them is faster than sorting
EXACT = 1 << 24  # integers up to which float32 counts exactly

Voxels = Int[np.ndarray, "_ 3"]
VoxelSet = Voxels | Int[Tensor, "_ 3"] | Collection[tuple[int, int, int]]


@dataclass(frozen=True, eq=False)
class VoxelGrid:
    """The voxels that each frame sees: cell (i, j, k) starts at origin + size * (i, j, k).

    Attributes:
        sets: Sorted unique cells of each frame; may be empty.
        origin: Minimum of the confident points, in their unit.
        size: Side of a voxel.
    """

    sets: list[Voxels]
    origin: Float[np.ndarray, " 3"]
    size: float


def voxelize(
    points: Float[Tensor, "T H W 3"] | Float[np.ndarray, "T H W 3"],
    confidence: Float[Tensor, "T H W"] | Float[np.ndarray, "T H W"],
) -> list[Voxels]:
    """The voxels that each frame sees, by the official rule; see `voxel_grid`."""
    return voxel_grid(points, confidence).sets


def voxel_grid(
    points: Float[Tensor, "T H W 3"] | Float[np.ndarray, "T H W 3"],
    confidence: Float[Tensor, "T H W"] | Float[np.ndarray, "T H W"],
) -> VoxelGrid:
    """Confident points in voxels, in the points' own precision.

    A point counts if its confidence is at least the median over all frames, and above 0.1. A voxel is a twentieth of
    the shortest side of the box around those that count; where that is flat, of the shortest side that isn't. Points
    and confidences that aren't finite don't count.
    """
    flat_points = _array(points).reshape(len(points), -1, 3)
    flat_confidence = _array(confidence).reshape(len(points), -1)
    threshold = _median(flat_confidence)
    if np.isnan(threshold):
        flat_confidence = np.nan_to_num(flat_confidence, nan=0.0)
        threshold = _median(flat_confidence)
    seen = []
    for frame, sure in zip(flat_points, flat_confidence, strict=True):
        # compress and not a mask as an index, which takes five times as long
        counted = np.compress((sure >= threshold) & (sure > MINIMUM_CONFIDENCE), frame, axis=0).T.copy()
        if counted.size and not np.isfinite(counted.sum(1)).all():  # a sum is quicker than a look at each
            counted = counted[:, np.isfinite(counted).all(0)]
        seen.append(counted)
    corners = [(frame.min(1), frame.max(1)) for frame in seen if frame.size]
    if not corners:
        return VoxelGrid([np.empty((0, 3), np.int64) for _ in seen], np.zeros(3, flat_points.dtype), 1.0)
    low = np.min([corner for corner, _ in corners], 0)
    sides = np.max([corner for _, corner in corners], 0) - low
    size = (min(sides[sides > 0], default=sides.dtype.type(CELLS))) / sides.dtype.type(CELLS)
    shape = tuple(int(count) for count in np.floor(sides / size) + 1)
    return VoxelGrid([_cells(frame, low, size, shape) for frame in seen], low, float(size))


def _array(values: Tensor | np.ndarray) -> np.ndarray:
    return values.detach().cpu().numpy() if isinstance(values, Tensor) else values


def _median(values: np.ndarray) -> np.floating:
    """`np.percentile(values, 50)` to the bit, in a third of the time: it partitions once, not at both middle values."""
    if not values.size:
        return np.float32(np.nan)
    middle = values.size // 2
    parted = np.partition(values, middle, axis=None)
    if np.isnan(parted[middle:].max()):
        return values.dtype.type(np.nan)
    high = parted[middle]
    return high if values.size % 2 else high - (high - parted[:middle].max()) * values.dtype.type(0.5)


def _cells(points: np.ndarray, low: np.ndarray, size: np.floating, shape: tuple[int, ...]) -> Voxels:
    """The sorted unique cells of points, one per column, in a grid of `shape`."""
    cells = points - low[:, None]
    cells /= size
    np.floor(cells, out=cells)
    total = shape[0] * shape[1] * shape[2]
    if total >= np.iinfo(np.int64).max:
        return np.unique(cells.astype(np.int64).T, axis=0)
    strides = np.array((shape[1] * shape[2], shape[2], 1))
    exact = cells if total < EXACT else cells.astype(np.int64)
    keys = (strides.astype(exact.dtype) @ exact).astype(np.int64)
    if total <= TABLE:
        marks = np.zeros(total, bool)
        marks[keys] = True
        keys = np.flatnonzero(marks)
    else:
        keys = np.unique(keys)
    return np.stack(np.unravel_index(keys, shape), -1)


def maximum_coverage(voxel_sets: Sequence[VoxelSet], k: int) -> list[int]:
    """Greedy maximum coverage: at most k frames, each the one that adds most voxels to those before it.

    Ties go to the lower frame. It stops where no frame adds any, so there may be fewer than k.

    Args:
        voxel_sets: Voxels of each frame: an (N, 3) integer array, or a list or set of triples; may be empty.
        k: Maximum number of frames.

    Returns:
        The frames in the order in which they are chosen.
    """
    voxels_of = _numbered(voxel_sets)
    covered = np.zeros(1 + max((int(voxels.max()) for voxels in voxels_of if len(voxels)), default=0), bool)
    chosen: list[int] = []
    while len(chosen) < min(k, len(voxels_of)):
        gains = [len(voxels) - np.count_nonzero(covered[voxels]) for voxels in voxels_of]
        best = int(np.argmax(gains))
        if not gains[best]:
            break
        chosen.append(best)
        covered[voxels_of[best]] = True
    return chosen


def _numbered(voxel_sets: Sequence[VoxelSet]) -> list[Int[np.ndarray, " _"]]:
    """The sets with one number from 0 per voxel, without repetitions."""
    arrays = [np.asarray(s if isinstance(s, (np.ndarray, Tensor)) else list(s)) for s in voxel_sets]
    sets = [array.reshape(-1, 3).astype(np.int64) for array in arrays]
    rows = np.concatenate([np.empty((0, 3), np.int64), *sets])
    if not len(rows):
        return [np.empty(0, np.int64) for _ in sets]
    rows -= rows.min(0)
    shape = [int(side) + 1 for side in rows.max(0)]
    if shape[0] * shape[1] * shape[2] < np.iinfo(np.int64).max:
        rows = rows @ np.array((shape[1] * shape[2], shape[2], 1))
    different, numbers = np.unique(rows, axis=0, return_inverse=True)
    frames = np.repeat(np.arange(len(sets)), [len(s) for s in sets])
    once = np.unique(frames * len(different) + numbers.reshape(-1))
    return np.split(once % len(different), np.searchsorted(once // len(different), np.arange(1, len(sets))))
