"""Space-aware frame sampling of Spatial-MLLM (arXiv 2505.23747): greedy maximum coverage of the scene's voxels."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from PIL import Image
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import get_worker_info

from datamodules.depth import read_depth
from datamodules.samplers.base import FrameSampler, PointMaps, PointSource, SceneView
from datamodules.trajectories import Trajectory
from zoo.cameras import intrinsics_in_pixels, normalize_intrinsics
from zoo.cameras.rays import pixel_center_intrinsics, unproject_depth
from zoo.errors import InputError
from zoo.files.fingerprint import file_fingerprint
from zoo.geometry.base import GeometryEncoder
from zoo.geometry.cache import LazyGeometry

OFFICIAL_WIDTH = 518  # width in pixels of Spatial-MLLM's code


class SpaceAwareSampler(FrameSampler):
    """Greedy maximum coverage of the scene's voxels (Spatial-MLLM, arXiv 2505.23747, section 3.3).

    A voxel's side is 1/20 of the scene's shortest side. Each chosen frame adds the largest number of voxels to those of
    the frames before it. Selections are cached on disk, so that geometry is computed once per video.

    Args:
        geometry: Source of the points: `PredictedPoints`, by default from VGGT-1B as in the official code, or
            `DatasetDepth`.
        when_covered: What to do when no frame adds a voxel: "stop" with fewer frames than requested, as the official
            code does, or "fill" up with the candidates farthest in time from the chosen frames.
        candidates: Number of candidates at even steps. null uses all frames.
        cache: Folder of cached selections. null disables caching.
    """

    geometry: PointSource

    def __init__(
        self,
        geometry: PointSource | None = None,
        when_covered: Literal["fill", "stop"] = "fill",
        candidates: int | None = 128,
        cache: str | None = "cache/selections",
    ) -> None:
        self.geometry = geometry or PredictedPoints()
        self.when_covered, self.candidates, self.cache = when_covered, candidates, cache
        self.stops_early = when_covered == "stop"

    def choose(self, scene: SceneView, n: int) -> list[int]:
        """Choose frames that cover the most voxels.

        Raises:
            ValueError: No frame has a point of sufficient confidence.
        """
        maps = self.geometry.points(scene)
        chosen = maximum_coverage(voxelize(maps.points, maps.confidence), n)
        if not chosen:
            found = f"no frame of {len(scene.pool)} has a point of sufficient confidence"
            raise ValueError(f"{scene.video.path}: {found}: choose another sampler or --data.sampler.geometry")
        return chosen if self.when_covered == "stop" else fill(chosen, len(scene.pool), n)


def fill(chosen: Sequence[int], total: int, n: int) -> list[int]:
    """Add frames up to n, each time the one of `total` that is farthest in time. Ties go to the lower frame."""
    filled = list(chosen)
    gaps = [min((abs(frame - other) for other in filled), default=total) for frame in range(total)]
    while len(filled) < min(n, total):
        farthest = max(range(total), key=gaps.__getitem__)
        filled.append(farthest)
        gaps = [min(gap, abs(frame - farthest)) for frame, gap in enumerate(gaps)]
    return filled


# ---- Sources of points: the dataset's depth, or a geometry encoder --------------------------------------------------


class DatasetDepth(PointSource):
    """Unproject the dataset's depth with its cameras. Frames without a pose have no points.

    Args:
        longest_side: Longest side of the depth maps in pixels. A voxel is 2 to 5 percent of a room, so 256 is enough.
    """

    def __init__(self, longest_side: int = 256) -> None:
        self.longest_side = longest_side

    def identity(self) -> Any:
        """Return the version of the points. Increase it when the same depth gives other points."""
        return "2"

    def points(self, scene: SceneView) -> PointMaps:
        """See `PointSource`."""
        video = scene.video
        if scene.depth is None or scene.K_normalized is None:
            what = "depth" if scene.depth is None else "cameras"
            raise ValueError(f"{video.path}: the scene has no {what}: provide it, or use PredictedPoints")
        poses = scene.poses
        scale = min(1.0, self.longest_side / max(video.height, video.width))
        height, width = max(1, round(video.height * scale)), max(1, round(video.width * scale))
        depth = read_depth(scene.depth, scene.pool, num_frames=video.num_frames, size_hw=(height, width))
        filled = depth.isfinite() & (depth > 0)
        if not filled.any():
            raise ValueError(f"{scene.depth}: empty, no pixel of {len(depth)} frames has a depth: write it again")
        K = scene.K_normalized[scene.pool]
        K_px = pixel_center_intrinsics(intrinsics_in_pixels(K, width, height))
        points = unproject_depth(depth[..., None], poses.float(), K_px.float())
        filled &= ~poses.isnan().flatten(1).any(1)[:, None, None]
        return PointMaps(points, filled.float(), poses, K)


class PredictedPoints(PointSource):
    """Points predicted by a geometry encoder. The default is Spatial-MLLM's VGGT-1B, which needs a GPU for 128 frames.

    Args:
        encoder: A geometry encoder that predicts cameras, and points or depth. null uses `PretrainedVGGT`, with the
            aggregator in bfloat16 on a GPU and in float32 elsewhere.
        head: "point" is the official choice. "depth" unprojects predicted depth with the predicted cameras, which
            VGGT's authors find more accurate (arXiv 2503.11651, section 4.3).
        width: Width of the resized frames in pixels, a multiple of the encoder's patch size.
        device: Device of the encoder. null uses a GPU if available.

    Raises:
        InputError: The encoder has no weights, or does not predict what `head` needs.
    """

    def __init__(
        self,
        encoder: Callable[[], GeometryEncoder] | None = None,
        head: Literal["point", "depth"] = "point",
        width: int = OFFICIAL_WIDTH,
        device: str | None = None,
    ) -> None:
        from zoo.geometry.vggt_encoder import PretrainedVGGT  # other samplers and trainings need no VGGT

        self.head, self.width = head, width
        self._device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        self._is_default = encoder is None
        dtype: Literal["float32", "bfloat16"] = "bfloat16" if self._device.startswith("cuda") else "float32"
        # described here, so that missing weights stop a run at once and not in each of its scenes
        self._encoder = LazyGeometry(encoder or partial(PretrainedVGGT, dtype=dtype))
        outline = self._encoder.meta_encoder
        option = f"--data.sampler.geometry.encoder {type(outline).__name__}"
        if not (outline.predicts_cameras and (outline.predicts_points if head == "point" else outline.predicts_depth)):
            raise InputError(f"{option} does not predict cameras and {head}: choose another encoder or head")
        if outline.requires_cameras or outline.scale_from is not None:
            raise InputError(
                f"{option} gets none of the dataset's cameras, and voxels have no unit: leave scale_from out, and take "
                "PretrainedDA3 for PosedDA3"
            )
        self._encoder.enable_head("camera")
        self._encoder.enable_head(head)

    def identity(self) -> Any:
        """Return the encoder's settings and weights."""
        settings = self._encoder.identity()
        if self._is_default:
            del settings["dtype"]  # selections made on a GPU are valid on a CPU
        return {**settings, "weights": self._encoder.weights(file_fingerprint)}

    def points(self, scene: SceneView) -> PointMaps:
        """See `PointSource`. The world frame is the encoder's reference view.

        Raises:
            InputError: The encoder should run on a GPU, but this is a worker of a DataLoader.
        """
        if self._device.startswith("cuda") and get_worker_info() is not None:  # a forked process can't use CUDA
            raise InputError(
                "PredictedPoints needs the GPU, which a data worker can't use: choose the frames beforehand by "
                "select-frames --workers 0, or set --data.num_workers 0"
            )
        frames = list(scene.video.read(scene.pool))
        encoder = self._encoder.load().to(self._device)
        images = encoder_images(frames, self.width, encoder.patch_size)
        with torch.inference_mode():
            (found,) = encoder([images.to(self._device)], [None], tokens=False)
        height, width = images.shape[-2:]
        poses, K, valid = found.cameras()
        K_px, points = intrinsics_in_pixels(K, width, height), found.points
        if self.head == "depth" and found.depth is not None:
            points = unproject_depth(found.depth[..., None], poses, K_px)
        assert points is not None and found.confidence is not None
        confidence = found.confidence
        if self.head == "depth":  # points of a frame without a camera have no place in the world
            confidence = confidence * valid[:, None, None]
        poses = poses.where(valid[:, None, None], torch.nan)
        turns = int(is_portrait(frames[0]))
        upright = Trajectory(poses.double().cpu(), K_px.double().cpu(), width, height, quarter_turns=turns).turned()
        K_normalized = normalize_intrinsics(upright.K_px, upright.width, upright.height)
        return PointMaps(points.float().cpu(), confidence.float().cpu(), upright.world_to_camera, K_normalized)


def is_portrait(frame: UInt8[Tensor, "3 H W"]) -> bool:
    """Return whether a frame must be rotated by 90 degrees for the encoder."""
    return frame.shape[1] > frame.shape[2]


def encoder_images(
    frames: Sequence[UInt8[Tensor, "3 _ _"]], width: int = OFFICIAL_WIDTH, patch_size: int = 14
) -> Float[Tensor, "T 3 H W"]:
    """Resize frames as Spatial-MLLM's sampler does for VGGT: RGB in 0..1, 518 px wide, the height in whole patches.

    Portrait frames are first rotated clockwise. Frames of different sizes are padded with white to the largest.
    """
    images = [_resized(frame, width, patch_size) for frame in frames]
    height, width = (max(image.shape[side] for image in images) for side in (1, 2))
    padded = []
    for image in images:
        down, across = height - image.shape[1], width - image.shape[2]
        around = (across // 2, across - across // 2, down // 2, down - down // 2)
        padded.append(F.pad(image, around, value=1.0))
    return torch.stack(padded)


def _resized(frame: UInt8[Tensor, "3 H W"], width: int, patch_size: int) -> Float[Tensor, "3 h w"]:
    image = Image.fromarray(frame.permute(1, 2, 0).numpy())
    if is_portrait(frame):
        image = image.rotate(-90, expand=True)
    height = round(image.height * (width / image.width) / patch_size) * patch_size
    image = image.resize((width, height), Image.Resampling.BICUBIC)
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255


# ---- Points to voxels, and the frames that cover most of them -------------------------------------------------------
# The official code holds sets of tuples. Here a voxel is one integer, and the voxels of a frame are marks in a table.
# The choices are the same (timed in `timings/sampling.py`)

CELLS = 20  # voxels along the shortest side of the scene
MINIMUM_CONFIDENCE = 0.1
TABLE = 1 << 22  # number of cells up to which marking is faster than sorting
EXACT = 1 << 24  # float32 represents integers exactly up to this

Voxels = Int[np.ndarray, "_ 3"]
VoxelSet = Voxels | Int[Tensor, "_ 3"] | Collection[tuple[int, int, int]]


@dataclass(frozen=True, eq=False)
class VoxelGrid:
    """The voxels that are visible in each frame. Cell (i, j, k) starts at origin + size * (i, j, k).

    Attributes:
        sets: Sorted unique cells of each frame, possibly empty.
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
    """Return the voxels that are visible in each frame, by the official rule; see `voxel_grid`."""
    return voxel_grid(points, confidence).sets


def voxel_grid(
    points: Float[Tensor, "T H W 3"] | Float[np.ndarray, "T H W 3"],
    confidence: Float[Tensor, "T H W"] | Float[np.ndarray, "T H W"],
) -> VoxelGrid:
    """Assign confident points to voxels, in the points' own precision.

    A point counts if its confidence is at least the median over all frames, and above 0.1. A voxel is 1/20 of the
    shortest side of the box around these points, or of the shortest side that is not zero. Points and confidences that
    aren't finite are ignored.
    """
    flat_points = _array(points).reshape(len(points), -1, 3)
    flat_confidence = _array(confidence).reshape(len(points), -1)
    threshold = _median(flat_confidence)
    if np.isnan(threshold):
        flat_confidence = np.nan_to_num(flat_confidence, nan=0.0)
        threshold = _median(flat_confidence)
    seen = []
    for frame, sure in zip(flat_points, flat_confidence, strict=True):
        # compress instead of a mask as an index, which takes five times as long
        counted = np.compress((sure >= threshold) & (sure > MINIMUM_CONFIDENCE), frame, axis=0).T.copy()
        if counted.size and not np.isfinite(counted.sum(1)).all():  # a sum is quicker than checking each value
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
    """Return `np.percentile(values, 50)` bit for bit in a third of the time, by partitioning once instead of twice."""
    if not values.size:
        return np.float32(np.nan)
    middle = values.size // 2
    parted = np.partition(values, middle, axis=None)
    if np.isnan(parted[middle:].max()):
        return values.dtype.type(np.nan)
    high = parted[middle]
    return high if values.size % 2 else high - (high - parted[:middle].max()) * values.dtype.type(0.5)


def _cells(points: np.ndarray, low: np.ndarray, size: np.floating, shape: tuple[int, ...]) -> Voxels:
    """Return the sorted unique cells of points, one per column, in a grid of `shape`."""
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
    """Choose at most k frames by greedy maximum coverage: each adds the most voxels to the frames before it.

    Ties go to the lower frame. The choice stops when no frame adds a voxel, so there may be fewer than k.

    Args:
        voxel_sets: Voxels of each frame: an (N, 3) integer array, or a list or set of triples, possibly empty.
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
    """Number the voxels from 0, and return the numbers of each set without repetitions."""
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
