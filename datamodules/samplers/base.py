"""Which frames of a video a model sees."""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from datamodules.selections import digest, find_selection, fingerprint, settings, write_selection
from datamodules.video import Video
from zoo.visual_grid import TEMPORAL_PATCH_SIZE

if TYPE_CHECKING:
    from datamodules.samplers.points import PointSource  # which imports this file


@dataclass(frozen=True, eq=False)
class SceneView:
    """What a sampler may look at: a video, what came with it, and the frames that may be chosen.

    Attributes:
        video: the video.
        world_to_camera: the pose of each raw frame, NaN where it has none; None where the data has no poses.
        K_normalized: its intrinsics, see `zoo.cameras.normalize_intrinsics`.
        depth: where depth maps of the raw frames lie, see `datamodules.depth`.
        epoch: of training; what draws at random draws anew in each.
        frames: the raw frames that may be chosen, sorted; None is all of them.
        name: of the scene, "<dataset>/<scene_name>"; without one, the folder and the name of the video.

    Raises:
        ValueError: more poses than frames.
    """

    video: Video
    world_to_camera: Float[Tensor, "N 4 4"] | None = None
    K_normalized: Float[Tensor, "N 3 3"] | None = None
    depth: Path | None = None
    epoch: int = 0
    frames: Sequence[int] | None = None
    name: str = ""

    def __post_init__(self) -> None:
        poses = 0 if self.world_to_camera is None else len(self.world_to_camera)
        if poses > self.video.num_frames:
            raise ValueError(
                f"{self.video.path}: {poses} poses for {self.video.num_frames} frames: give one a raw frame"
            )

    @property
    def scene_name(self) -> str:
        """What the scene is called in files of selections."""
        path = self.video.path.absolute()
        return self.name or f"{path.parent.name}/{path.name if path.is_dir() else path.stem}"

    @cached_property
    def pool(self) -> list[int]:
        """The raw frames that may be chosen."""
        return list(range(self.video.num_frames) if self.frames is None else self.frames)

    @cached_property
    def poses(self) -> Float[Tensor, "T 4 4"]:
        """World-to-camera of the pool in float64; NaN where a frame has none, as those beyond the last pose.

        Raises:
            ValueError: not one frame of the pool has a pose.
        """
        poses = torch.full((self.video.num_frames, 4, 4), torch.nan, dtype=torch.float64)
        if self.world_to_camera is not None:
            poses[: len(self.world_to_camera)] = self.world_to_camera
        poses = poses[self.pool]
        poses[~poses.isfinite().flatten(1).all(1)] = torch.nan
        if poses.isnan().all():
            raise ValueError(
                f"{self.video.path}: no frame has a pose, and this sampler chooses by them: give cameras, or take "
                "another sampler"
            )
        return poses

    def among(self, candidates: int) -> SceneView:
        """The same with at most so many frames to choose from, at even steps rounded down (Spatial-MLLM's)."""
        return replace(self, frames=[self.pool[i] for i in even_steps(len(self.pool), candidates)])


class FrameSampler(ABC):
    """Chooses frames of a video, from its length alone, from its cameras, or from what they see.

    To add one: a file in this folder with `choose`, a line in `__init__.py`, a test. Its options are the
    arguments of its `__init__`, so that a config can set them.

    Attributes:
        candidates: choose among so many frames at even steps; None is all.
        geometry: gives the points that it chooses by; None for one that doesn't look at any.
        stops_early: it may choose fewer than asked for though there are more.
        cache: folder where selections are kept, for a sampler that takes its time and does not draw at random; None
            keeps none.
        version: raised when the same settings come to choose other frames, so that no kept selection is stale.
    """

    candidates: int | None = None
    geometry: PointSource | None = None
    stops_early: bool = False
    cache: str | None = None
    version: int = 1

    def __call__(self, scene: SceneView | Video, n: int) -> list[int]:
        """Sorted frame indices, an even number of them, near n.

        A video with too few frames repeats its last one, which shows as repeated indices; it is said once.

        Args:
            scene: a video alone has neither cameras nor depth.

        Raises:
            ValueError: n < 2, or the scene lacks what the sampler needs.
        """
        if n < TEMPORAL_PATCH_SIZE:
            raise ValueError(f"{n} frames of a video are too few: at least {TEMPORAL_PATCH_SIZE} are needed")
        n = self.count(n)
        scene = SceneView(scene) if isinstance(scene, Video) else scene
        chosen = self.filled(self.select(scene, n), n, scene)
        return chosen + chosen[-1:] * (len(chosen) % TEMPORAL_PATCH_SIZE)

    def filled(self, chosen: list[int], n: int, scene: SceneView) -> list[int]:
        """The chosen frames with the last one repeated up to n, unless fewer are what the sampler means."""
        return chosen if self.stops_early else chosen + chosen[-1:] * (n - len(chosen))

    def select(self, scene: SceneView | Video, n: int) -> list[int]:
        """Sorted indices of at most n distinct frames: fewer where there are no more, or the sampler stops early."""
        scene = SceneView(scene) if isinstance(scene, Video) else scene
        if self.cache is None:
            chosen = self._select(scene, n)
        else:
            key, made_by = self.key(scene, n)
            kept = Path(self.cache).expanduser() / f"{scene.video.path.stem}-{key}.json"
            found = find_selection(kept, key)
            if found is None:
                found = self._select(scene, n)
                write_selection(kept, scene.scene_name, found, key, made_by)
            chosen = found
        if len(chosen) < n and not self.stops_early:
            warnings.warn(  # once a video: the same text is not shown twice from one place
                f"{scene.scene_name}: only {len(chosen)} frames to choose from, {n} were asked for: the last one is "
                "repeated",
                stacklevel=1,
            )
        return chosen

    def _select(self, scene: SceneView, n: int) -> list[int]:
        scene = self.among(scene)
        return sorted(scene.pool[i] for i in self.choose(scene, n))

    def among(self, scene: SceneView) -> SceneView:
        """The scene with the frames that this sampler chooses among."""
        return scene if self.candidates is None else scene.among(self.candidates)

    def key(self, scene: SceneView, n: int) -> tuple[str, dict[str, Any]]:
        """A digest of all that a selection depends on, and the same in words: no two selections share one."""
        made_by: dict[str, Any] = {
            "sampler": settings(self),
            "version": self.version,
            "views": n,
            "frames": scene.video.num_frames if scene.frames is None else list(scene.frames),
            "video": fingerprint(scene.video.path),
            "depth": None if scene.depth is None else fingerprint(scene.depth),
            "world_to_camera": settings(scene.world_to_camera),
            "K_normalized": settings(scene.K_normalized),
        }
        made_by["sampler"].pop("cache", None)  # where it lies changes no frame
        return digest(made_by), {**made_by, "stops_early": self.stops_early}

    def reads(self, scene_name: str) -> list[Path]:
        """Files that a choice is read from, beside the scene's own; a sampler that has some overrides this."""
        return []

    def count(self, n: int) -> int:
        """How many frames n asks for; a sampler that rounds it overrides this."""
        return self.at_most(n)

    def at_most(self, n: int) -> int:
        """n, or the number of candidates if that is less."""
        return n if self.candidates is None else min(n, self.candidates)

    @abstractmethod
    def choose(self, scene: SceneView, n: int) -> list[int]:
        """At least one and at most n distinct places in `scene.pool`, in any order."""


def even_steps(total: int, n: int) -> list[int]:
    """At most n of the numbers below total at even steps, rounded down, the first and the last among them."""
    return np.unique(np.linspace(0, total - 1, min(total, n), dtype=int)).tolist()
