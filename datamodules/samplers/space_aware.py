"""Spatial-MLLM's space-aware frame sampling: greedy maximum coverage of voxels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from datamodules.samplers.base import FrameSampler, SceneView
from datamodules.samplers.coverage import maximum_coverage, voxelize
from datamodules.samplers.points import PointSource, PredictedPoints


class SpaceAwareSampler(FrameSampler):
    """Greedy maximum coverage of the scene's voxels (Spatial-MLLM, arXiv 2505.23747, section 3.3).

    The points that the candidates see fall into voxels of 1/20 of the scene's shortest side; each chosen frame adds the
    most voxels to those before it. Selections are cached on disk, so that geometry is computed once per video.

    Args:
        geometry: Source of the points: `PredictedPoints`, by default of VGGT-1B as in the official code, or
            `DatasetDepth`.
        when_covered: Once no frame adds a voxel, "stop" with fewer frames than asked for, as the official code does, or
            "fill" up with the candidates farthest in time from the chosen frames.
        candidates: Number of candidates at even steps; null is all frames.
        cache: Folder of cached selections; null disables caching.
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
        """Places that cover the most voxels.

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
    """Add to the chosen of `total` frames, up to n, each time the one farthest in time; ties to the lower frame."""
    filled = list(chosen)
    gaps = [min((abs(frame - other) for other in filled), default=total) for frame in range(total)]
    while len(filled) < min(n, total):
        farthest = max(range(total), key=gaps.__getitem__)
        filled.append(farthest)
        gaps = [min(gap, abs(frame - farthest)) for frame, gap in enumerate(gaps)]
    return filled
