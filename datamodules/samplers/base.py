"""Base classes of frame samplers and frame pairings.

A sampler chooses the views of a scene that a model sees. A pairing chooses the two frames of each visual token:
Qwen2.5-VL merges two consecutive *selected* frames (temporal_patch_size 2). Frames at small even steps look almost the
same. Views that were chosen for their diversity don't, and their token has two cameras. Each frame keeps its camera and
time, and a token gets the camera of its first frame.
"""

from __future__ import annotations

import inspect
import json
import random
import warnings
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from datamodules.samplers.selection_files import SHARED, find_selection, write_selection
from datamodules.video import Video, companion_name, even_steps
from zoo.cameras.scene_geometry import SceneGeometry
from zoo.configuration import Configurable
from zoo.errors import InputError
from zoo.files.cache import cache_folder
from zoo.files.fingerprint import file_fingerprint, fingerprint
from zoo.seed import resolve_seed
from zoo.sequences.layout import TEMPORAL_PATCH_SIZE

# ---- Input of samplers: a scene, and the 3D points of its frames ----------------------------------------------------


@dataclass(frozen=True, eq=False)
class SceneView:
    """The input of a frame sampler: a video, its cameras and depth, and the candidate frames.

    Attributes:
        video: The video.
        world_to_camera: Pose of each raw frame, NaN where unknown. None without cameras.
        K_normalized: Intrinsics of each raw frame, see `zoo.cameras.normalize_intrinsics`.
        depth: Location of the depth maps, see `datamodules.depth`.
        epoch: Training epoch, part of the seed of random samplers.
        frames: Sorted raw frames that may be chosen. None allows all.
        name: "<dataset>/<scene_name>". If empty, the folder and name of the video.
        times_s: Time of each raw frame in seconds. None if unknown.
        depth_maps: Depth of each raw frame, for frames in memory.

    Raises:
        ValueError: The number of poses differs from the number of frames.
    """

    video: Video
    world_to_camera: Float[Tensor, "N 4 4"] | None = None
    K_normalized: Float[Tensor, "N 3 3"] | None = None
    depth: Path | None = None
    epoch: int = 0
    frames: Sequence[int] | None = None
    name: str = ""
    times_s: Sequence[float] | None = None
    depth_maps: Float[Tensor, "N H W"] | None = None

    def __post_init__(self) -> None:
        poses, total = self.world_to_camera, self.video.num_frames
        if poses is not None and len(poses) != total:
            raise ValueError(f"{self.video.path}: {len(poses)} poses for {total} frames: provide one per raw frame")

    @property
    def scene_name(self) -> str:
        """Name of the scene in selection files."""
        if self.name:
            return self.name
        path = self.video.path.absolute()
        return f"{path.parent.name}/{companion_name(path)}"

    def geometry(self, indices: Sequence[int]) -> SceneGeometry | None:
        """Return cameras of raw frames, or None if no frame has one. `has_camera` marks frames that have a pose."""
        if self.world_to_camera is None or self.K_normalized is None:
            return None
        poses, K = self.world_to_camera[list(indices)], self.K_normalized[list(indices)]
        has_camera = poses.isfinite().flatten(1).all(1)
        poses = torch.where(has_camera[:, None, None], poses, torch.eye(4, dtype=poses.dtype))
        return SceneGeometry(world_to_camera=poses, K_normalized=K, has_camera=has_camera) if has_camera.any() else None

    @cached_property
    def pool(self) -> list[int]:
        """Candidates: raw frames that may be chosen."""
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
        """Return the scene with at most `candidates` candidates at even steps, rounded down as by Spatial-MLLM."""
        return replace(self, frames=[self.pool[i] for i in even_steps(len(self.pool), candidates)])


@dataclass(frozen=True, eq=False)
class PointMaps:
    """The 3D point of each pixel of the candidate frames.

    Attributes:
        points: Points in one world frame, in any unit.
        confidence: Confidence of each point; 0 where a pixel has no point.
        world_to_camera: Pose of each frame in that world, NaN where unknown. None for a source without poses.
        K_normalized: Intrinsics of each frame, see `zoo.cameras.normalize_intrinsics`.
    """

    points: Float[Tensor, "T H W 3"]
    confidence: Float[Tensor, "T H W"]
    world_to_camera: Float[Tensor, "T 4 4"] | None = None
    K_normalized: Float[Tensor, "T 3 3"] | None = None


class PointSource(Configurable, ABC):
    """Provide the 3D points that are visible in the candidate frames of a scene."""

    @abstractmethod
    def points(self, scene: SceneView) -> PointMaps:
        """Return the points of each frame of `scene.pool`.

        Raises:
            ValueError: The scene lacks data that the source needs. The message names it and the remedy.
        """

    def identity(self) -> Any:
        """Return what else determines the points, such as weights, as JSON content."""
        return ""


# ---- Frame samplers -------------------------------------------------------------------------------------------------


class FrameSampler(Configurable, ABC):
    """Base class of frame samplers.

    A new sampler is a file in this folder with `choose`, a line in `__init__.py`, and a test. The arguments of its
    `__init__` are its options in a config.

    Attributes:
        candidates: Number of candidates at even steps. None uses all frames.
        geometry: Source of 3D points, for samplers that use them.
        stops_early: Whether the sampler may choose fewer frames than requested.
        cache: Folder of cached selections, for slow deterministic samplers. None disables caching.
        version: Increase it when the same settings choose other frames, so that cached selections become invalid.
    """

    candidates: int | None = None
    geometry: PointSource | None = None
    stops_early: bool = False
    cache: str | None = None
    version: int = 1

    @property
    def varies_by_epoch(self) -> bool:
        """Whether the sampler draws other frames in each epoch."""
        return False

    def __call__(self, scene: SceneView | Video, n: int) -> list[int]:
        """Choose an even number of frames near n.

        If the video is shorter, its last frame is repeated, with a warning.

        Args:
            scene: The scene, or a video alone, without cameras and depth.
            n: Number of frames.

        Returns:
            Sorted raw frames.

        Raises:
            ValueError: Fewer than two frames are requested, or the scene lacks data that the sampler requires.
        """
        return Consecutive()(self, scene, n)

    def pad(self, chosen: list[int], n: int, scene: SceneView) -> list[int]:
        """Repeat the last frame up to n frames, unless the sampler stops early."""
        return chosen if self.stops_early else chosen + chosen[-1:] * (n - len(chosen))

    def select(self, scene: SceneView | Video, n: int) -> list[int]:
        """Choose at most n distinct frames, or read them from the cache. Return them sorted."""
        scene = SceneView(scene) if isinstance(scene, Video) else scene
        if self.cache is None:
            frames = self._select(scene, n)
        else:
            key, made_by = self.key(scene, n)
            file = cache_folder(self.cache) / f"{scene.video.path.stem}-{key}.json"
            cached = find_selection(file, key)
            frames = self._select(scene, n) if cached is None else cached
            if cached is None:
                write_selection(file, scene.scene_name, frames, key, made_by)
        if len(frames) < n and not self.stops_early:
            missing = f"only {len(frames)} frames to choose from, {n} were asked for"
            # Python shows the same warning from the same place once, so once per video
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
        """Return the scene with the candidates of this sampler."""
        return scene if self.candidates is None else scene.among(self.candidates)

    def key(self, scene: SceneView, n: int) -> tuple[str, dict[str, Any]]:
        """Return everything on which a selection of n frames depends: its digest and the settings."""
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
        """Return the settings of n frames on which the choice depends, in any scene."""
        sampler = settings(self)
        sampler.pop("cache", None)  # the cache's location does not affect the choice
        return dict(zip(SHARED, (sampler, self.version, n), strict=True))

    def reads(self, scene_name: str) -> list[Path]:
        """Return further files on which the choice depends, beside the scene's own."""
        return []

    def count(self, n: int) -> int:
        """Return the number of frames for n. Samplers that round it override this."""
        return self.limited(n)

    def limited(self, n: int) -> int:
        """Return n, or the number of candidates if there are fewer."""
        return n if self.candidates is None else min(n, self.candidates)

    @abstractmethod
    def choose(self, scene: SceneView, n: int) -> list[int]:
        """Choose at least one and at most n distinct indices into `scene.pool`, in any order."""


def settings(component: Any) -> Any:
    """Return the settings of a component as JSON content: its class and public attributes, recursively.

    A component that depends on more than its attributes, such as a file of weights, has a method `identity()`.

    Raises:
        TypeError: An attribute, such as a function, has no JSON content: make it private or add `identity()`.
    """
    return json.loads(json.dumps(component, default=_described))


def _described(component: Any) -> Any:
    if isinstance(component, Path):
        return str(component)
    if isinstance(component, Tensor):
        return fingerprint(component)
    if not hasattr(component, "__dict__") or inspect.isroutine(component) or isinstance(component, type):
        raise TypeError(f"{component!r} can't be recorded as a setting: keep it in a private attribute")
    public = {name: value for name, value in vars(component).items() if not name.startswith("_")}
    identity = {"identity": component.identity()} if hasattr(component, "identity") else {}
    return {"class": type(component).__qualname__, **public, **identity}


# ---- Frame pairings -------------------------------------------------------------------------------------------------


class FramePairing(Configurable, ABC):
    """Expand the views of a sampler into pairs of frames. Subclasses define `pair` and may override `views`."""

    def __call__(self, sampler: FrameSampler, scene: SceneView | Video, n: int) -> list[int]:
        """Choose about n frames, two per token.

        If the video is shorter, its last view is repeated, unless the sampler stops early.

        Args:
            sampler: Chooses the views.
            scene: The scene, or a video alone, without cameras and depth.
            n: Number of frames.

        Returns:
            Sorted raw frames.

        Raises:
            ValueError: Fewer than two frames are requested, or the scene lacks data that the sampler requires.
        """
        if n < TEMPORAL_PATCH_SIZE:
            raise ValueError(f"{n} frames of a video are too few: at least {TEMPORAL_PATCH_SIZE} are needed")
        scene = SceneView(scene) if isinstance(scene, Video) else scene
        num_views = self.views(n, sampler)
        views = sampler.pad(sampler.select(scene, num_views), num_views, scene)
        return self.pair(views, sampler.among(scene))

    def views(self, n: int, sampler: FrameSampler) -> int:
        """Return the number of views for n frames."""
        return sampler.limited(n // TEMPORAL_PATCH_SIZE)  # not rounded to pairs

    @property
    def varies_by_epoch(self) -> bool:
        """Whether other pairs are drawn in each epoch."""
        return False

    @abstractmethod
    def pair(self, views: Sequence[int], scene: SceneView) -> list[int]:
        """Return the frames of each token, pair after pair. `scene.pool` holds the sampler's candidates."""


class Consecutive(FramePairing):
    """Merge consecutive chosen frames, as Qwen2.5-VL and Spatial-MLLM do."""

    def views(self, n: int, sampler: FrameSampler) -> int:
        """Return the sampler's own number of frames."""
        return sampler.count(n)

    def pair(self, views: Sequence[int], scene: SceneView) -> list[int]:
        """Return the views. The last one is repeated if their number is odd."""
        return [*views, *views[-1:]] if len(views) % TEMPORAL_PATCH_SIZE else list(views)


class Neighbor(FramePairing):
    """Merge each chosen view with the next raw frame. There are half as many views.

    The last frame of the video is merged with itself.
    """

    def pair(self, views: Sequence[int], scene: SceneView) -> list[int]:
        """Return each view and its next raw frame."""
        last = scene.video.num_frames - 1
        return [frame for view in views for frame in (view, min(view + 1, last))]


class Duplicate(FramePairing):
    """Merge each chosen view with itself, so that each token has one exact camera.

    Args:
        keep: The number that equals the request: "frames" (half as many views) or "views" (twice as many frames).
    """

    def __init__(self, keep: Literal["frames", "views"] = "frames") -> None:
        self.keep = keep

    def views(self, n: int, sampler: FrameSampler) -> int:
        """Return the number of views: n // 2 or n, limited by the candidates."""
        return super().views(n if self.keep == "frames" else TEMPORAL_PATCH_SIZE * n, sampler)

    def pair(self, views: Sequence[int], scene: SceneView) -> list[int]:
        """Return each view twice."""
        return [view for view in views for _ in range(TEMPORAL_PATCH_SIZE)]


class OffsetNeighbor(FramePairing):
    """Merge each chosen view with a neighbor some steps away, by the rules of the Spatial-MLLM fork's samplers.

    The first view takes a later frame, the last view an earlier one, and the others take a frame on `side`. A view is
    merged with itself if its neighbor is outside the video or reaches the adjacent view.

    Args:
        side: Side of the neighbor. "random" draws it for each view and epoch.
        step: Distance of the neighbor. With `random_step` the largest one.
        of: Unit of `step`: the sampler's "candidates" (all frames if it has none), or frames of the "video".
        seed: Seed of random draws, together with the epoch and the video's name. null uses the run's seed.
        random_step: Draw each neighbor's distance from 1 to `step`, for each view and epoch.
    """

    def __init__(
        self,
        side: Literal["before", "after", "random"] = "after",
        step: int = 1,
        of: Literal["candidates", "video"] = "candidates",
        seed: int | None = None,
        random_step: bool = False,
    ) -> None:
        if step < 1:
            raise InputError(f"--data.frame_pairing.step {step}: at least 1")
        self.side, self.step, self.of, self.seed = side, step, of, resolve_seed(seed)
        self.random_step = random_step

    @property
    def varies_by_epoch(self) -> bool:
        """See `FramePairing`."""
        return self.side == "random" or self.random_step

    def pair(self, views: Sequence[int], scene: SceneView) -> list[int]:
        """Return each view and its neighbor, sorted."""
        frames = scene.pool if self.of == "candidates" else list(range(scene.video.num_frames))
        place = {frame: i for i, frame in enumerate(frames)}
        if strange := set(views) - place.keys():
            chosen = f"{scene.scene_name}: frame {min(strange)} was chosen but is not a candidate"
            raise ValueError(f"{chosen}, so it has no neighbor among them: take --data.frame_pairing.of video")
        return self.drawn(views, frames, place, random.Random(f"{self.seed}/{scene.epoch}/{scene.video.path.name}"))

    def drawn(
        self, views: Sequence[int], frames: Sequence[int], place: Mapping[int, int], draw: random.Random
    ) -> list[int]:
        """Return each view and its neighbor among `frames`, sorted. `place` has the place of each frame among them."""
        pairs: list[int] = []
        for i, view in enumerate(views):
            if i == 0 or i == len(views) - 1:
                side = "after" if i == 0 else "before"
            else:
                side = draw.choice(("before", "after")) if self.side == "random" else self.side
            step = draw.randint(1, self.step) if self.random_step else self.step
            at = place[view] + (step if side == "after" else -step)
            neighbor = frames[at] if 0 <= at < len(frames) else view
            reaches_previous = side == "before" and i > 0 and neighbor <= views[i - 1]
            reaches_next = side == "after" and i < len(views) - 1 and neighbor >= views[i + 1]
            pairs += (view, view if reaches_previous or reaches_next else neighbor)
        return sorted(pairs)  # as in the fork, because the neighbors of two views may have crossed


# ---- Time between the chosen frames ---------------------------------------------------------------------------------


def sampled_seconds_per_grid(times_s: Sequence[float], num_frames: int) -> float:
    """Return the seconds per temporal patch as in qwen-vl-utils: 2 / sampled fps.

    The sampled fps is the video's mean fps times the share of chosen frames.

    Args:
        times_s: Timestamps of all frames of the video.
        num_frames: Number of chosen frames.
    """
    interval = (times_s[-1] - times_s[0]) / max(1, len(times_s) - 1)
    return TEMPORAL_PATCH_SIZE * interval * len(times_s) / num_frames


def seconds_per_grid(times_s: Sequence[float]) -> float:
    """Return the mean time in seconds between the first frames of consecutive tokens.

    For a single token this is twice the time between its two frames, as in a clip with even steps.

    Args:
        times_s: Timestamps of the chosen frames.
    """
    first = times_s[::TEMPORAL_PATCH_SIZE]
    if len(first) > 1:
        return (first[-1] - first[0]) / (len(first) - 1)
    return TEMPORAL_PATCH_SIZE * (times_s[-1] - times_s[0])
