"""Space-aware sampling: points to voxels, and greedy maximum coverage.

Source: Spatial-MLLM (arXiv 2505.23747), section 3.3. The official code holds sets of tuples; here a voxel is one
integer, and the greedy algorithm is lazy.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int
from torch import Tensor

CELLS = 20  # voxels along the shortest side of the scene
MIN_CONFIDENCE = 0.1
MAX_INT64 = np.iinfo(np.int64).max

Voxels = Int[np.ndarray, "_ 3"]
VoxelSet = Voxels | Int[Tensor, "_ 3"] | Collection[tuple[int, int, int]]


@dataclass(frozen=True, eq=False)
class VoxelGrid:
    """The voxels seen by each frame; voxel (i, j, k) starts at origin + size * (i, j, k).

    Attributes:
        sets: Sorted unique voxels of each frame, possibly none.
        origin: Lower corner of the confident points, in their unit.
        size: Side length of a voxel.
    """

    sets: list[Voxels]
    origin: Float[np.ndarray, " 3"]
    size: float


def voxelize(
    points: Float[Tensor, "T H W 3"] | Float[np.ndarray, "T H W 3"],
    confidence: Float[Tensor, "T H W"] | Float[np.ndarray, "T H W"],
) -> list[Voxels]:
    """The voxels seen by each frame, by the official rule; see `voxel_grid`."""
    return voxel_grid(points, confidence).sets


def voxel_grid(
    points: Float[Tensor, "T H W 3"] | Float[np.ndarray, "T H W 3"],
    confidence: Float[Tensor, "T H W"] | Float[np.ndarray, "T H W"],
) -> VoxelGrid:
    """Confident points in voxels, in the points' own precision.

    A point is confident if its confidence is at least the median over all frames and above 0.1. The voxel size is a
    twentieth of the shortest side of the confident points' bounding box, flat sides excluded. Points and confidences
    that aren't finite are ignored.
    """
    flat_points = _to_numpy(points).reshape(len(points), -1, 3)
    flat_confidence = _to_numpy(confidence).reshape(len(points), -1)
    threshold = np.percentile(flat_confidence, 50)
    if np.isnan(threshold):
        flat_confidence = np.nan_to_num(flat_confidence, nan=0.0)
        threshold = np.percentile(flat_confidence, 50)
    is_confident = (flat_confidence >= threshold) & (flat_confidence > MIN_CONFIDENCE)
    is_confident &= np.isfinite(flat_points).all(-1)
    # one coordinate per row: sums and minima over rows are far faster
    frames = [frame[confident].T.copy() for frame, confident in zip(flat_points, is_confident, strict=True)]
    corners = [(frame.min(1), frame.max(1)) for frame in frames if frame.size]
    if not corners:
        return VoxelGrid([np.empty((0, 3), np.int64) for _ in frames], np.zeros(3, flat_points.dtype), 1.0)
    low = np.min([corner for corner, _ in corners], 0)
    sides = np.max([corner for _, corner in corners], 0) - low
    size = min(sides[sides > 0], default=sides.dtype.type(CELLS)) / sides.dtype.type(CELLS)
    voxels = [np.floor((frame - low[:, None]) / size).astype(np.int64) for frame in frames]
    shape = tuple(int(count) + 1 for count in np.floor(sides / size))
    return VoxelGrid([_unique(frame, shape) for frame in voxels], low, float(size))


def _to_numpy(values: Tensor | np.ndarray) -> np.ndarray:
    return values.detach().cpu().numpy() if isinstance(values, Tensor) else values


def _unique(voxels: Int[np.ndarray, "3 _"], shape: tuple[int, ...]) -> Voxels:
    """Sorted unique voxels of a grid, by one integer per voxel where int64 can count them: far faster than rows."""
    if math.prod(shape) >= MAX_INT64:
        return np.unique(voxels.T, axis=0)
    keys = np.unique(np.ravel_multi_index(tuple(voxels), shape))
    return np.stack(np.unravel_index(keys, shape), -1)


def maximum_coverage(voxel_sets: Sequence[VoxelSet], k: int) -> list[int]:
    """Greedy maximum coverage: repeatedly takes the frame that adds most voxels; ties go to the lower frame.

    Stops when no frame adds a voxel. Lazy (Minoux, 1978): gains only decrease, so the largest gain that is up to date
    is the maximum.

    Args:
        voxel_sets: Voxels of each frame: an (N, 3) integer array, or a list or set of triples; may be empty.
        k: Maximum number of frames.

    Returns:
        Frames in the order in which they are taken.
    """
    numbers = _number_voxels(voxel_sets)
    covered = np.zeros(1 + max((int(voxels.max()) for voxels in numbers if len(voxels)), default=0), bool)
    queue = [(-len(voxels), frame) for frame, voxels in enumerate(numbers)]
    heapq.heapify(queue)
    chosen: list[int] = []
    while queue and len(chosen) < k:
        frame = queue[0][1]
        gain = len(numbers[frame]) - int(np.count_nonzero(covered[numbers[frame]]))
        entry = (-gain, frame)
        heapq.heapreplace(queue, entry)
        if queue[0] != entry:
            continue
        if not gain:
            break
        heapq.heappop(queue)
        chosen.append(frame)
        covered[numbers[frame]] = True
    return chosen


def _number_voxels(voxel_sets: Sequence[VoxelSet]) -> list[Int[np.ndarray, " _"]]:
    """Numbers the distinct voxels from 0; returns the unique numbers of each frame."""
    arrays = [np.asarray(s if isinstance(s, (np.ndarray, Tensor)) else list(s)) for s in voxel_sets]
    sets = [array.reshape(-1, 3).astype(np.int64) for array in arrays]
    rows = np.concatenate([np.empty((0, 3), np.int64), *sets])
    if not len(rows):
        return [np.empty(0, np.int64) for _ in sets]
    rows -= rows.min(0)
    shape = tuple(int(side) + 1 for side in rows.max(0))
    if math.prod(shape) < MAX_INT64:
        rows = np.ravel_multi_index(tuple(rows.T), shape)
    _, numbers = np.unique(rows, axis=0, return_inverse=True)
    return [np.unique(part) for part in np.split(numbers.reshape(-1), np.cumsum([len(s) for s in sets])[:-1])]
