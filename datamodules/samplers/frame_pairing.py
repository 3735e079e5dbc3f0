"""Which two frames are merged into one visual token.

Qwen2.5-VL merges two consecutive *selected* frames (temporal_patch_size 2). Of a video at even, small steps they show
nearly the same; of views chosen to differ they don't, and a token then has two cameras. A pairing says which frames
meet. Cameras and times follow, since they are those of the frames: the first of a pair gives the token its camera.
"""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Literal

from datamodules.samplers.base import FrameSampler, SceneView
from datamodules.video import Video
from zoo.errors import InputError
from zoo.visual_grid import TEMPORAL_PATCH_SIZE


class FramePairing(ABC):
    """Turns the views that a sampler chooses into pairs of frames. To add one: `pair`, and `views` if need be."""

    def __call__(self, sampler: FrameSampler, scene: SceneView | Video, n: int) -> list[int]:
        """Frame indices, sorted, two a token; n of them, or as near as the sampler allows.

        A video with too few frames repeats its last view, unless the sampler stops early on purpose.

        Raises:
            ValueError: n < 2, or the scene lacks what the sampler needs.
        """
        if n < TEMPORAL_PATCH_SIZE:
            raise ValueError(f"{n} frames of a video are too few: at least {TEMPORAL_PATCH_SIZE} are needed")
        scene = SceneView(scene) if isinstance(scene, Video) else scene
        views = sampler.filled(sampler.select(scene, self.views(n, sampler)), self.views(n, sampler), scene)
        return self.pair(views, sampler.among(scene))

    def views(self, n: int, sampler: FrameSampler) -> int:
        """How many views the sampler is asked for, where n frames are wanted."""
        return sampler.at_most(n // TEMPORAL_PATCH_SIZE)

    @abstractmethod
    def pair(self, views: Sequence[int], scene: SceneView) -> list[int]:
        """The frames of each view's token, one pair after the other; `scene.pool` are the sampler's candidates."""


class Consecutive(FramePairing):
    """Two consecutive chosen frames share a token, whatever they show: what Qwen2.5-VL and Spatial-MLLM do."""

    def __call__(self, sampler: FrameSampler, scene: SceneView | Video, n: int) -> list[int]:
        return sampler(scene, n)

    def views(self, n: int, sampler: FrameSampler) -> int:
        return sampler.count(n)

    def pair(self, views: Sequence[int], scene: SceneView) -> list[int]:
        return [*views, *views[-1:]] if len(views) % TEMPORAL_PATCH_SIZE else list(views)


class Neighbor(FramePairing):
    """Each chosen view with its next raw frame, as close as the video has them: half as many views.

    The last frame of the video has no next one, and is taken twice.
    """

    def pair(self, views: Sequence[int], scene: SceneView) -> list[int]:
        last = scene.video.num_frames - 1
        return [frame for view in views for frame in (view, min(view + 1, last))]


class Duplicate(FramePairing):
    """Each chosen view twice: a token of one view, with one exact camera.

    Args:
        keep: what stays as asked for: "frames", so that there are half as many views, or "views", so that
            there are twice as many frames.
    """

    def __init__(self, keep: Literal["frames", "views"] = "frames") -> None:
        self.keep = keep

    def views(self, n: int, sampler: FrameSampler) -> int:
        return super().views(n, sampler) if self.keep == "frames" else sampler.at_most(n)

    def pair(self, views: Sequence[int], scene: SceneView) -> list[int]:
        return [view for view in views for _ in range(TEMPORAL_PATCH_SIZE)]


class OffsetNeighbor(FramePairing):
    """Each chosen view with a neighbor some steps away, by the rules of the Spatial-MLLM fork's samplers.

    The first view meets a later frame, the last view an earlier one, and those between as `side` says. A neighbor
    beyond the end, or as far as the view beside it, gives way to the view itself.

    Args:
        side: where the neighbor is; "random" is drawn from the video's name and the epoch.
        step: how far away it is.
        of: what is counted: the sampler's "candidates" (all frames where it has none), or frames of the "video".
    """

    def __init__(
        self,
        side: Literal["before", "after", "random"] = "after",
        step: int = 1,
        of: Literal["candidates", "video"] = "candidates",
    ) -> None:
        if step < 1:
            raise InputError(f"--data.frame_pairing.step {step}: at least 1")
        self.side, self.step, self.of = side, step, of

    def pair(self, views: Sequence[int], scene: SceneView) -> list[int]:
        frames = scene.pool if self.of == "candidates" else list(range(scene.video.num_frames))
        place = {frame: i for i, frame in enumerate(frames)}
        if strange := set(views) - place.keys():
            raise ValueError(
                f"{scene.scene_name}: frame {min(strange)} was chosen and is no candidate, so that no candidate is "
                "beside it: take --data.frame_pairing.of video"
            )
        draw = random.Random(f"{scene.epoch}/{scene.video.path.name}")
        pairs: list[int] = []
        for i, view in enumerate(views):
            side = draw.choice(("before", "after")) if self.side == "random" else self.side
            if i == 0 or i == len(views) - 1:
                side = "after" if i == 0 else "before"
            beside = place[view] + (self.step if side == "after" else -self.step)
            neighbor = frames[beside] if 0 <= beside < len(frames) else view
            if (side == "before" and i and neighbor <= views[i - 1]) or (
                side == "after" and i < len(views) - 1 and neighbor >= views[i + 1]
            ):
                neighbor = view
            pairs += (view, neighbor)
        return sorted(pairs)  # as there: the neighbors of two views may have passed each other


def seconds_per_grid(times_s: Sequence[float]) -> float:
    """The mean time in seconds from one token's first frame to the next one's, from when each frame is shown.

    A single token lasts as long as two frames are apart, twice over: what a clip at even steps would have.
    """
    first = times_s[::TEMPORAL_PATCH_SIZE]
    if len(first) > 1:
        return (first[-1] - first[0]) / (len(first) - 1)
    return TEMPORAL_PATCH_SIZE * (times_s[-1] - times_s[0])
