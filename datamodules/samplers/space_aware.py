"""Spatial-MLLM's space-aware frame sampling: greedy maximum coverage of voxels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from datamodules.samplers.base import FrameSampler, SceneView
from datamodules.samplers.coverage import VoxelGrid, maximum_coverage, voxel_grid
from datamodules.samplers.points import PointSource, PredictedPoints


class SpaceAwareSampler(FrameSampler):
    """Greedy maximum coverage of the scene's voxels (Spatial-MLLM, arXiv 2505.23747, section 3.3).

    The points that the candidates see fall into voxels of 1/20 of the scene's shortest side; each chosen frame adds the
    most voxels to those before it. Selections are kept on disk, so that geometry is computed once per video.

    Args:
        geometry: source of the points: `PredictedPoints`, by default of VGGT-1B as in the official code, or
            `DatasetDepth`.
        when_covered: once no frame adds a voxel, "stop" with fewer frames than asked for, as the official code does, or
            "fill" up with the candidates farthest in time from the chosen frames.
        candidates: number of frames to choose among, at even steps; null is all.
        cache: folder where selections are kept; null keeps none.
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
        """See `FrameSampler`.

        Raises:
            ValueError: No frame has a point of sufficient confidence.
        """
        chosen = maximum_coverage(self.grid(scene).sets, n)
        if not chosen:
            raise ValueError(
                f"{scene.video.path}: no frame of {len(scene.pool)} has a point of sufficient confidence: choose "
                "another sampler or another --data.sampler.geometry for it"
            )
        return chosen if self.when_covered == "stop" else fill(chosen, len(scene.pool), n)

    def grid(self, scene: SceneView) -> VoxelGrid:
        """The voxels that each frame of the pool sees.

        Raises:
            ValueError: The scene lacks what the geometry needs.
        """
        maps = self.geometry.points(scene)
        return voxel_grid(maps.points, maps.confidence)


def fill(chosen: Sequence[int], total: int, n: int) -> list[int]:
    """Adds to the chosen of `total` frames, up to n, each time the one farthest in time; ties to the lower frame."""
    filled = list(chosen)
    gaps = [min((abs(frame - other) for other in filled), default=total) for frame in range(total)]
    while len(filled) < min(n, total):
        farthest = max(range(total), key=gaps.__getitem__)
        filled.append(farthest)
        gaps = [min(gap, abs(frame - farthest)) for frame, gap in enumerate(gaps)]
    return filled
