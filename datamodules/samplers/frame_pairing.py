"""Frame pairing: which two frames are merged into one visual token.

Qwen2.5-VL merges two consecutive *selected* frames (temporal_patch_size 2). Frames at small even steps show nearly the
same; views chosen to differ don't, and their token has two cameras. A pairing decides which frames are merged. Cameras
and times are those of the frames: the first frame of a pair gives the token its camera.
"""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Literal

from datamodules.samplers.base import FrameSampler, SceneView
from datamodules.video import Video
from zoo.configuration import Configurable
from zoo.errors import InputError
from zoo.seed import resolve_seed
from zoo.sequences.visual_grid import TEMPORAL_PATCH_SIZE


class FramePairing(Configurable, ABC):
    """Expand the views chosen by a sampler into pairs of frames. Subclasses define `pair` and may override `views`."""

    def __call__(self, sampler: FrameSampler, scene: SceneView | Video, n: int) -> list[int]:
        """Choose about n frames, two per token.

        A shorter video repeats its last view, unless the sampler stops early.

        Args:
            sampler: Chooses the views.
            scene: A video alone has neither cameras nor depth.
            n: Number of frames.

        Returns:
            Sorted raw frames.

        Raises:
            ValueError: N < 2, or the scene lacks data that the sampler requires.
        """
        if n < TEMPORAL_PATCH_SIZE:
            raise ValueError(f"{n} frames of a video are too few: at least {TEMPORAL_PATCH_SIZE} are needed")
        scene = SceneView(scene) if isinstance(scene, Video) else scene
        num_views = self.views(n, sampler)
        views = sampler.pad(sampler.select(scene, num_views), num_views, scene)
        return self.pair(views, sampler.among(scene))

    def views(self, n: int, sampler: FrameSampler) -> int:
        """The number of views for n frames."""
        return sampler.limited(n // TEMPORAL_PATCH_SIZE)  # without the rounding of frames to pairs

    @property
    def varies_by_epoch(self) -> bool:
        """Whether other pairs are drawn in each epoch."""
        return False

    @abstractmethod
    def pair(self, views: Sequence[int], scene: SceneView) -> list[int]:
        """The frames of each token, pair after pair; `scene.pool` holds the sampler's candidates."""


class Consecutive(FramePairing):
    """Merge consecutive chosen frames, whatever they show, as Qwen2.5-VL and Spatial-MLLM do."""

    def views(self, n: int, sampler: FrameSampler) -> int:
        """The sampler's own number of frames."""
        return sampler.count(n)

    def pair(self, views: Sequence[int], scene: SceneView) -> list[int]:
        """The views, with the last one repeated if their number is odd."""
        return [*views, *views[-1:]] if len(views) % TEMPORAL_PATCH_SIZE else list(views)


class Neighbor(FramePairing):
    """Merge each chosen view with the next raw frame: half as many views.

    The last frame of the video is merged with itself.
    """

    def pair(self, views: Sequence[int], scene: SceneView) -> list[int]:
        """Each view and its next raw frame."""
        last = scene.video.num_frames - 1
        return [frame for view in views for frame in (view, min(view + 1, last))]


class Duplicate(FramePairing):
    """Merge each chosen view with itself: one exact camera per token.

    Args:
        keep: Number that stays as asked for: "frames" (half as many views) or "views" (twice as many frames).
    """

    def __init__(self, keep: Literal["frames", "views"] = "frames") -> None:
        self.keep = keep

    def views(self, n: int, sampler: FrameSampler) -> int:
        """Half of n or n views."""
        return super().views(n if self.keep == "frames" else TEMPORAL_PATCH_SIZE * n, sampler)

    def pair(self, views: Sequence[int], scene: SceneView) -> list[int]:
        """Each view twice."""
        return [view for view in views for _ in range(TEMPORAL_PATCH_SIZE)]


class OffsetNeighbor(FramePairing):
    """Merge each chosen view with a neighbor some steps away, by the rules of the Spatial-MLLM fork's samplers.

    The first view takes a later frame, the last view an earlier one, and the others one on `side`. A view is merged
    with itself if its neighbor is beyond the end of the video or reaches the adjacent view.

    Args:
        side: Side of the neighbor; "random" draws it anew for each view and epoch.
        step: Distance of the neighbor.
        of: Unit of `step`: the sampler's "candidates" (all frames if it has none), or frames of the "video".
        seed: Seed of random sides, together with the epoch and the video's name; null is the run's.
    """

    def __init__(
        self,
        side: Literal["before", "after", "random"] = "after",
        step: int = 1,
        of: Literal["candidates", "video"] = "candidates",
        seed: int | None = None,
    ) -> None:
        if step < 1:
            raise InputError(f"--data.frame_pairing.step {step}: at least 1")
        self.side, self.step, self.of, self.seed = side, step, of, resolve_seed(seed)

    @property
    def varies_by_epoch(self) -> bool:
        """See `FramePairing`."""
        return self.side == "random"

    def pair(self, views: Sequence[int], scene: SceneView) -> list[int]:
        """Each view and its neighbor, sorted."""
        frames = scene.pool if self.of == "candidates" else list(range(scene.video.num_frames))
        place = {frame: i for i, frame in enumerate(frames)}
        if strange := set(views) - place.keys():
            chosen = f"{scene.scene_name}: frame {min(strange)} was chosen but is not a candidate"
            raise ValueError(f"{chosen}, so it has no neighbor among them: take --data.frame_pairing.of video")
        draw = random.Random(f"{self.seed}/{scene.epoch}/{scene.video.path.name}")
        pairs: list[int] = []
        for i, view in enumerate(views):
            side = draw.choice(("before", "after")) if self.side == "random" else self.side
            if i == 0 or i == len(views) - 1:
                side = "after" if i == 0 else "before"
            at = place[view] + (self.step if side == "after" else -self.step)
            neighbor = frames[at] if 0 <= at < len(frames) else view
            reaches_previous = side == "before" and i > 0 and neighbor <= views[i - 1]
            reaches_next = side == "after" and i < len(views) - 1 and neighbor >= views[i + 1]
            pairs += (view, view if reaches_previous or reaches_next else neighbor)
        return sorted(pairs)  # as in the fork: the neighbors of two views may have crossed


def sampled_seconds_per_grid(times_s: Sequence[float], num_frames: int) -> float:
    """Seconds per temporal patch as in qwen-vl-utils: 2 / sampled fps, the mean fps times the share of chosen frames.

    Args:
        times_s: Timestamps of all frames of the video.
        num_frames: Chosen frames.
    """
    interval = (times_s[-1] - times_s[0]) / max(1, len(times_s) - 1)
    return TEMPORAL_PATCH_SIZE * interval * len(times_s) / num_frames


def seconds_per_grid(times_s: Sequence[float]) -> float:
    """Mean time in seconds between the first frames of consecutive tokens.

    A single token counts twice the time between its two frames, as in a clip at even steps.

    Args:
        times_s: Timestamps of the chosen frames.
    """
    first = times_s[::TEMPORAL_PATCH_SIZE]
    if len(first) > 1:
        return (first[-1] - first[0]) / (len(first) - 1)
    return TEMPORAL_PATCH_SIZE * (times_s[-1] - times_s[0])
