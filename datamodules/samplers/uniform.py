"""Frames at even steps, by the rounding rules of published code, and frames or steps drawn at random for training."""

from __future__ import annotations

import random
from typing import Literal

import torch

from datamodules.samplers.base import FrameSampler, SceneView
from datamodules.video import even_steps
from zoo.errors import InputError
from zoo.seed import resolve_seed
from zoo.sequences.layout import TEMPORAL_PATCH_SIZE

Rule = Literal["qwen_vl_utils", "linspace_floor", "floor_128"]


class UniformSampler(FrameSampler):
    """Frames at even steps from the first to the last.

    Args:
        rule: Rounding rule.
            "qwen_vl_utils": n to the nearest even number (odd n to a multiple of four), indices to the nearest frame;
            inference of Qwen2.5-VL and Spatial-MLLM.
            "linspace_floor": indices rounded down; Spatial-MLLM's training script.
            "floor_128": 128 candidates rounded down, then an even choice of them rounded down, so at most 128 frames;
            the uniform baseline of Spatial-MLLM's space-aware sampling.
        candidates: Number of candidates at even steps. null uses all frames, or the rule's 128.
    """

    def __init__(self, rule: Rule = "qwen_vl_utils", candidates: int | None = None) -> None:
        if rule == "floor_128" and candidates not in (None, 128):
            raise InputError(f"the rule floor_128 has 128 candidates, not {candidates}: take linspace_floor with them")
        self.rule, self.candidates = rule, 128 if rule == "floor_128" else candidates

    def count(self, n: int) -> int:
        """Return the number of frames after the rule's rounding."""
        if self.rule == "qwen_vl_utils":
            n = round(n / TEMPORAL_PATCH_SIZE) * TEMPORAL_PATCH_SIZE
        return self.limited(n)

    def choose(self, scene: SceneView, n: int) -> list[int]:
        """Choose indices at even steps."""
        total = len(scene.pool)
        if self.rule == "qwen_vl_utils" and total > n:
            return torch.linspace(0, total - 1, n).round().long().tolist()  # float32, as in qwen-vl-utils
        return even_steps(total, n)


class FrameRateSampler(FrameSampler):
    """Frames at a fixed rate.

    A video with too many of them gets even steps, rounded down. A short one gives fewer frames. This is the sampling
    of LLaVA's descendants, such as Cambrian-S.

    Args:
        fps: Frames per second. Every k-th frame is chosen, and k is rounded.
    """

    stops_early = True

    def __init__(self, fps: int | float = 1.0) -> None:
        if not fps > 0:
            raise InputError(f"FrameRateSampler: fps {fps}: give a number above 0")
        self.fps = fps

    def choose(self, scene: SceneView, n: int) -> list[int]:
        """Choose every k-th frame, or n frames at even steps.

        Raises:
            InputError: The times of the frames are unknown.
        """
        total, times = len(scene.pool), scene.times_s
        if times is None:
            raise InputError(
                f"FrameRateSampler needs the times of the frames of {scene.scene_name}: put times_s into its "
                "cameras.json, or take UniformSampler"
            )
        own = [times[frame] for frame in scene.pool]
        rate = (total - 1) / (own[-1] - own[0]) if total > 1 else self.fps
        chosen = list(range(0, total, max(1, round(rate / self.fps))))
        return chosen if len(chosen) <= n else even_steps(total, n)


# ---- Random frames for training -------------------------------------------------------------------------------------


class RandomSampler(FrameSampler):
    """One random frame from each of n equal segments of the video, drawn anew in every epoch (TSN, arXiv 1608.00859).

    The draw depends only on the seed, the epoch and the video's name, so a resumed run draws the same frames.

    Args:
        seed: Seed of the draw. null uses the run's seed.
        candidates: Number of candidates at even steps. null uses all frames.
    """

    def __init__(self, seed: int | None = None, candidates: int | None = None) -> None:
        self.seed, self.candidates = resolve_seed(seed), candidates

    @property
    def varies_by_epoch(self) -> bool:
        """See `FrameSampler`."""
        return True

    def choose(self, scene: SceneView, n: int) -> list[int]:
        """Choose one index per segment."""
        total = len(scene.pool)
        if total <= n:
            return list(range(total))
        draw = random.Random(f"{self.seed}/{scene.epoch}/{scene.video.path.name}")
        edges = [round(i * total / n) for i in range(n + 1)]
        return [draw.randrange(start, stop) for start, stop in zip(edges, edges[1:], strict=False)]


class JitteredSampler(FrameSampler):
    """Frames at even steps, each moved by a random number of frames, drawn anew in every epoch.

    Cambrian-P trains on questions so (arXiv 2605.22819). The order is kept: no frame moves to the place of the next one
    or before the previous one's. The draw depends only on the seed, the epoch and the video's name.

    Args:
        share: Largest movement, as a share of the video's frames.
        seed: Seed of the draw. null uses the run's seed.
        candidates: Number of candidates at even steps. null uses all frames.
    """

    def __init__(self, share: float = 0.005, seed: int | None = None, candidates: int | None = None) -> None:
        if not 0 <= share < 1:
            raise InputError(f"JitteredSampler: share {share}: give a number from 0 to below 1")
        self.share, self.seed, self.candidates = share, resolve_seed(seed), candidates

    @property
    def varies_by_epoch(self) -> bool:
        """See `FrameSampler`."""
        return True

    def choose(self, scene: SceneView, n: int) -> list[int]:
        """Choose indices at even steps, and move them."""
        draw = random.Random(f"{self.seed}/{scene.epoch}/{scene.video.path.name}")
        return jittered(len(scene.pool), n, self.share, draw)


def jittered(total: int, n: int, share: float, draw: random.Random) -> list[int]:
    """Choose n of `total` frames near even steps. All frames if there are not more."""
    if total <= n:
        return list(range(total))
    even, most = even_steps(total, n), int(share * total)
    chosen = [0]  # which bounds the first one
    for frame, following in zip(even, [*even[1:], total], strict=True):
        moved = min(frame + draw.randint(-most, most), following - 1)
        chosen.append(max(moved, chosen[-1]))
    return chosen[1:]


class RandomSteps(FrameSampler):
    """Frames at random steps from a random start, drawn anew in every epoch. They show one part of a video.

    Spa3R's pretraining draws them (arXiv 2602.21186). In a short video the largest step is reduced, and if even the
    smallest does not fit, any frames are drawn. The draw depends only on the seed, the epoch and the video's name.

    Args:
        least: Smallest step between two frames.
        most: Largest step between two frames.
        seed: Seed of the draw. null uses the run's seed.
        candidates: Number of candidates at even steps. null uses all frames.
    """

    def __init__(self, least: int = 2, most: int = 6, seed: int | None = None, candidates: int | None = None) -> None:
        if not 1 <= least <= most:
            raise InputError(f"RandomSteps has steps of {least} to {most}: give 1 or more, the smaller number first")
        self.least, self.most, self.seed, self.candidates = least, most, resolve_seed(seed), candidates

    @property
    def varies_by_epoch(self) -> bool:
        """See `FrameSampler`."""
        return True

    def choose(self, scene: SceneView, n: int) -> list[int]:
        """Choose a start, and the steps from it."""
        draw = random.Random(f"{self.seed}/{scene.epoch}/{scene.video.path.name}")
        return random_steps(len(scene.pool), n, self.least, self.most, draw)


def random_steps(total: int, n: int, least: int, most: int, draw: random.Random) -> list[int]:
    """Draw n of `total` frames at random steps. All frames if there are not more."""
    if total <= n:
        return list(range(total))
    most = min(most, (total - 1) // max(1, n - 1))
    if most < least:
        return sorted(draw.sample(range(total), n))
    places = [draw.randint(0, total - 1 - most * (n - 1))]
    while len(places) < n:
        places.append(places[-1] + draw.randint(least, most))
    return places
