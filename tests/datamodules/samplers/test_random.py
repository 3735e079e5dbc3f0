"""Random frames: one of each stretch, others each epoch, the same again from the same seed."""

from __future__ import annotations

from pathlib import Path

from datamodules.samplers import RandomSampler
from datamodules.video import Video


def clip(num_frames: int, name: str = "clip.mp4") -> Video:
    video = Video.__new__(Video)
    video.num_frames, video.path = num_frames, Path(name)
    return video


def test_one_frame_of_each_stretch() -> None:
    for epoch in range(20):
        chosen = RandomSampler()(clip(48), 8, epoch=epoch)
        assert [frame // 6 for frame in chosen] == list(range(8))


def test_anew_each_epoch_seed_and_video_but_reproducibly() -> None:
    first = RandomSampler()(clip(48), 8, epoch=0)
    assert RandomSampler()(clip(48), 8, epoch=0) == first
    others = [
        RandomSampler()(clip(48), 8, epoch=1),
        RandomSampler(seed=1)(clip(48), 8, epoch=0),
        RandomSampler()(clip(48, "other.mp4"), 8, epoch=0),
    ]
    assert all(other != first for other in others)


def test_a_short_video_repeats_its_last_frame() -> None:
    assert RandomSampler()(clip(3), 6) == [0, 1, 2, 2, 2, 2]
