"""What a trained model is tested on to see what it goes by: wrong intrinsics, views or their frame ids out of order.

    python main.py test --data.source benchmarks.perturbed.WrongIntrinsics --data.source.error 0.05
    python main.py test --data.frame_pairing benchmarks.perturbed.ShuffledSteps
    python main.py test --data benchmarks.perturbed.ShuffledFrameIds

Nothing is trained again, and the weights are the same.
"""

from __future__ import annotations

import json
import os
import random
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from datamodules import Rooms, VideoQADataModule
from datamodules.collate import Collate, LoadedScene
from datamodules.samplers import Consecutive, FrameSampler
from datamodules.samplers.base import SceneView
from datamodules.scenes import Scene
from datamodules.sources.base import Split
from datamodules.video import Video


class WrongIntrinsics(Rooms):
    """The rooms, with focal lengths that are off.

    Args:
        error: a fraction of the focal length, 0.05 for 5 % too long.
        rooms: the other arguments of `Rooms`.
    """

    def __init__(self, error: float = 0.05, **rooms: Any) -> None:
        super().__init__(**rooms)
        self.error = error

    def scenes(self, split: Split) -> list[Scene]:
        return [replace(scene, cameras=self._wrong(scene)) for scene in super().scenes(split)]

    def _wrong(self, scene: Scene) -> Any:
        assert scene.cameras is not None
        content = json.loads(scene.cameras.read_text())
        K_px = torch.tensor(content["K_px"])
        K_px[..., 0, 0] *= 1 + self.error
        K_px[..., 1, 1] *= 1 + self.error
        folder = self.folder.with_name(f"{self.folder.name}-focal{self.error:+g}")
        folder.mkdir(exist_ok=True)
        wrong = folder / scene.cameras.name
        unfinished = wrong.with_suffix(f".{os.getpid()}")  # two tests may write it at once
        unfinished.write_text(json.dumps({**content, "K_px": K_px.tolist()}))
        return unfinished.replace(wrong)


class ShuffledSteps(Consecutive):
    """The pairs of frames of a video in an order that its name draws; cameras and frame ids go with the frames."""

    def __call__(self, sampler: FrameSampler, scene: SceneView | Video, n: int) -> list[int]:
        video = scene if isinstance(scene, Video) else scene.video
        return shuffled_pairs(super().__call__(sampler, scene, n), video.path.name)


class ShuffledFrameIds(VideoQADataModule):
    """Frame ids in an order that the scene's name draws; the frames, and their cameras, stay in theirs."""

    def _collate(self, training: bool) -> Collate:
        collate = super()._collate(training)
        collate.__class__ = CollateShuffledIds
        return collate


class CollateShuffledIds(Collate):
    """What `ShuffledFrameIds` makes batches with."""

    def __call__(self, scenes: list[LoadedScene]) -> dict[str, Any]:
        for loaded in scenes:
            loaded.frame_indices = tuple(shuffled_pairs(loaded.frame_indices, loaded.scene.name))
        return super().__call__(scenes)


def shuffled_pairs(frames: Sequence[int], seed: str) -> list[int]:
    """Those that share a token stay together."""
    pairs = list(zip(frames[::2], frames[1::2], strict=True))
    random.Random(seed).shuffle(pairs)
    return [frame for pair in pairs for frame in pair]
