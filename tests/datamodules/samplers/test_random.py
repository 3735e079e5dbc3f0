"""Random frames: one of each stretch, others each epoch, the same again from the same seed."""

from __future__ import annotations

from pathlib import Path

import pytest

from datamodules.samplers import RandomSampler, SceneView
from datamodules.video import Video


def clip(num_frames: int, name: str = "clip.mp4") -> Video:
    video = Video.__new__(Video)
    video.num_frames, video.path = num_frames, Path(name)
    return video


def at(epoch: int, name: str = "clip.mp4") -> SceneView:
    return SceneView(clip(48, name), epoch=epoch)


def test_one_frame_of_each_stretch() -> None:
    for epoch in range(20):
        chosen = RandomSampler()(at(epoch), 8)
        assert [frame // 6 for frame in chosen] == list(range(8))


def test_anew_each_epoch_seed_and_video_but_reproducibly() -> None:
    first = RandomSampler()(at(0), 8)
    assert RandomSampler()(at(0), 8) == first
    others = [
        RandomSampler()(at(1), 8),
        RandomSampler(seed=1)(at(0), 8),
        RandomSampler()(at(0, "other.mp4"), 8),
    ]
    assert all(other != first for other in others)


def test_a_short_video_repeats_its_last_frame() -> None:
    with pytest.warns(UserWarning, match="clip: only 3 frames to choose from, 6 were asked for"):
        assert RandomSampler()(clip(3), 6) == [0, 1, 2, 2, 2, 2]
