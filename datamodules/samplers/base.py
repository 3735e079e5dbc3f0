"""Frame samplers: the base class and its input."""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from datamodules.selections import SHARED, find_selection, settings, write_selection
from datamodules.video import Video, companion_name, even_steps
from zoo.configuration import Configurable
from zoo.errors import InputError
from zoo.files.fingerprint import file_fingerprint, fingerprint

if TYPE_CHECKING:
    from datamodules.samplers.points import PointSource  # which imports this file


@dataclass(frozen=True, eq=False)
class SceneView:
    """The input of a frame sampler: a video, its cameras and depth, and the candidate frames.

    Attributes:
        video: The video.
        world_to_camera: Pose of each raw frame, NaN where unknown; None without cameras.
        K_normalized: Intrinsics of each raw frame, see `zoo.cameras.normalize_intrinsics`.
        depth: Location of the depth maps, see `datamodules.depth`.
        epoch: Training epoch, part of the seed of random samplers.
        frames: Sorted raw frames that may be chosen; None is all of them.
        name: "<dataset>/<scene_name>"; the folder and name of the video if empty.

    Raises:
        ValueError: The number of poses is not that of the video's frames.
    """

    video: Video
    world_to_camera: Float[Tensor, "N 4 4"] | None = None
    K_normalized: Float[Tensor, "N 3 3"] | None = None
    depth: Path | None = None
    epoch: int = 0
    frames: Sequence[int] | None = None
    name: str = ""

    def __post_init__(self) -> None:
        poses, total = self.world_to_camera, self.video.num_frames
        if poses is not None and len(poses) != total:
            raise ValueError(f"{self.video.path}: {len(poses)} poses for {total} frames: provide one per raw frame")

    @property
    def scene_name(self) -> str:
        """Name of the scene in selection files."""
        path = self.video.path.absolute()
        return self.name or f"{path.parent.name}/{companion_name(path)}"

    @cached_property
    def pool(self) -> list[int]:
        """The candidates: raw frames that may be chosen."""
        return list(range(self.video.num_frames) if self.frames is None else self.frames)

    @cached_property
    def poses(self) -> Float[Tensor, "T 4 4"]:
        """World-to-camera poses of the candidates in float64, NaN where unknown.

        Raises:
            ValueError: No candidate has a pose.
        """
        if self.world_to_camera is not None:
            poses = self.world_to_camera[self.pool].double()
            is_known = poses.isfinite().flatten(1).all(1)
            if is_known.any():
                return poses.where(is_known[:, None, None], torch.nan)
        raise ValueError(f"{self.video.path}: no frame has a pose: provide cameras, or take a sampler without poses")

    def among(self, candidates: int) -> SceneView:
        """The scene with at most `candidates` candidates at even steps, rounded down (Spatial-MLLM's rule)."""
        return replace(self, frames=[self.pool[i] for i in even_steps(len(self.pool), candidates)])


class FrameSampler(Configurable, ABC):
    """Base class of frame samplers.

    A new sampler is a file in this folder with `choose`, a line in `__init__.py`, and a test. The arguments of its
    `__init__` are its options in a config.

    Attributes:
        candidates: Number of candidates at even steps; None is all frames.
        geometry: Source of 3D points, for samplers that use them.
        stops_early: Whether it may choose fewer frames than asked for.
        cache: Folder of cached selections, for slow deterministic samplers; None disables caching.
        version: Increase it when the same settings choose other frames, so that cached selections are invalidated.
    """

    candidates: int | None = None
    geometry: PointSource | None = None
    stops_early: bool = False
    cache: str | None = None
    version: int = 1

    @property
    def varies_by_epoch(self) -> bool:
        """Whether other frames are drawn in each epoch."""
        return False

    def __call__(self, scene: SceneView | Video, n: int) -> list[int]:
        """Choose an even number of frames near n.

        A shorter video repeats its last frame, with a warning.

        Args:
            scene: A video alone has neither cameras nor depth.
            n: Number of frames.

        Returns:
            Sorted raw frames.

        Raises:
            ValueError: N < 2, or the scene lacks data that the sampler requires.
        """
        from datamodules.samplers.frame_pairing import Consecutive  # which imports this file

        return Consecutive()(self, scene, n)

    def pad(self, chosen: list[int], n: int, scene: SceneView) -> list[int]:
        """Repeat the last frame up to n frames, unless the sampler stops early."""
        return chosen if self.stops_early else chosen + chosen[-1:] * (n - len(chosen))

    def select(self, scene: SceneView | Video, n: int) -> list[int]:
        """Chooses at most n distinct frames, using the cache; returns them sorted."""
        scene = SceneView(scene) if isinstance(scene, Video) else scene
        if self.cache is None:
            frames = self._select(scene, n)
        else:
            key, made_by = self.key(scene, n)
            file = Path(self.cache).expanduser() / f"{scene.video.path.stem}-{key}.json"
            cached = find_selection(file, key)
            frames = self._select(scene, n) if cached is None else cached
            if cached is None:
                write_selection(file, scene.scene_name, frames, key, made_by)
        if len(frames) < n and not self.stops_early:
            missing = f"only {len(frames)} frames to choose from, {n} were asked for"
            # once per video: Python shows the same text from one place once
            warnings.warn(f"{scene.scene_name}: {missing}: the last one is repeated", stacklevel=1)
        return frames

    def _select(self, scene: SceneView, n: int) -> list[int]:
        scene = self.among(scene)
        places = list(self.choose(scene, n))
        if not 0 < len(set(places)) == len(places) <= n or not set(places) <= set(range(len(scene.pool))):
            raise InputError(
                f"{type(self).__name__} chose {places} of {len(scene.pool)} frames, expected 1 to {n} different places "
                "from 0"
            )
        return sorted(scene.pool[i] for i in places)

    def among(self, scene: SceneView) -> SceneView:
        """The scene with the candidates of this sampler."""
        return scene if self.candidates is None else scene.among(self.candidates)

    def key(self, scene: SceneView, n: int) -> tuple[str, dict[str, Any]]:
        """Digest and settings: everything that a selection of n frames depends on."""
        made_by: dict[str, Any] = {
            **self.shared_settings(n),
            "frames": scene.video.num_frames if scene.frames is None else list(scene.frames),
            "video": file_fingerprint(scene.video.path),
            "depth": None if scene.depth is None else file_fingerprint(scene.depth),
            "world_to_camera": settings(scene.world_to_camera),
            "K_normalized": settings(scene.K_normalized),
        }
        return fingerprint(made_by), {**made_by, "stops_early": self.stops_early}

    def shared_settings(self, n: int) -> dict[str, Any]:
        """The settings of n frames that the choice depends on, whatever the scene."""
        sampler = settings(self)
        sampler.pop("cache", None)  # its location changes no frame
        return dict(zip(SHARED, (sampler, self.version, n), strict=True))

    def reads(self, scene_name: str) -> list[Path]:
        """Files beside the scene's own that the choice depends on."""
        return []

    def count(self, n: int) -> int:
        """The number of frames for n; overridden by samplers that round it."""
        return self.limited(n)

    def limited(self, n: int) -> int:
        """n, or the number of candidates if there are fewer."""
        return n if self.candidates is None else min(n, self.candidates)

    @abstractmethod
    def choose(self, scene: SceneView, n: int) -> list[int]:
        """Chooses at least one and at most n distinct places in `scene.pool`, in any order."""
