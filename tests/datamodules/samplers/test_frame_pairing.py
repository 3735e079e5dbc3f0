"""Which frames share a token, and what follows from it: counts, order, time."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from datamodules.samplers import (
    Consecutive,
    Duplicate,
    FramePairing,
    FrameSampler,
    Neighbor,
    OffsetNeighbor,
    RandomSampler,
    SceneView,
    UniformSampler,
)
from datamodules.samplers.base import seconds_per_grid
from datamodules.video import Video

EVERY = [
    Consecutive(),
    Neighbor(),
    Duplicate(),
    Duplicate("views"),
    OffsetNeighbor(),
    OffsetNeighbor("before"),
    OffsetNeighbor("random", 2),
    OffsetNeighbor(of="video"),
]


def scene(num_frames: int, epoch: int = 0) -> SceneView:
    video = Video.__new__(Video)
    video.num_frames, video.path = num_frames, Path("clip.mp4")
    return SceneView(video, epoch=epoch)


class Chosen(FrameSampler):
    """Frames that the test names."""

    def __init__(self, *frames: int, candidates: int | None = None) -> None:
        self.frames, self.candidates = frames, candidates

    def choose(self, scene: SceneView, n: int) -> list[int]:
        assert n == len(self.frames)
        return [scene.pool.index(frame) for frame in self.frames]


def test_consecutive_is_what_the_sampler_says() -> None:
    assert Consecutive()(UniformSampler(), scene(100), 8) == UniformSampler()(scene(100), 8)
    assert Consecutive()(Chosen(3, 50, 60, 90), scene(100), 4) == [3, 50, 60, 90]


def test_neighbor_takes_the_next_raw_frame_and_the_last_twice() -> None:
    assert Neighbor()(Chosen(3, 50, 99), scene(100), 6) == [3, 4, 50, 51, 99, 99]
    with_pool = Chosen(0, 33, 99, candidates=4)  # next in the video, not among the candidates
    assert Neighbor()(with_pool, scene(100), 6) == [0, 1, 33, 34, 99, 99]


def test_duplicate_halves_the_views_or_doubles_the_frames() -> None:
    assert Duplicate()(Chosen(3, 50), scene(100), 4) == [3, 3, 50, 50]
    assert Duplicate("views")(Chosen(3, 50, 60, 99), scene(100), 4) == [3, 3, 50, 50, 60, 60, 99, 99]


def test_merge_aware_follows_the_forks_rules() -> None:
    pool = Chosen(0, 33, 66, 99, candidates=100)
    assert OffsetNeighbor()(pool, scene(100), 8) == [0, 1, 33, 34, 66, 67, 98, 99]  # the last looks back
    assert OffsetNeighbor("before")(pool, scene(100), 8) == [0, 1, 32, 33, 65, 66, 98, 99]  # the first looks on
    assert OffsetNeighbor(step=5)(Chosen(0, 4, 60), scene(100), 6) == [
        0,
        0,
        4,
        9,
        55,
        60,
    ]  # 5 would pass the second view
    assert OffsetNeighbor(step=4)(Chosen(0, 4, 60), scene(100), 6) == [0, 0, 4, 8, 56, 60]  # and 4 would be it
    assert OffsetNeighbor(step=5)(Chosen(0, 57, 60), scene(100), 6) == [0, 5, 57, 57, 60, 60]
    assert OffsetNeighbor(step=50)(Chosen(60, 70), scene(100), 4) == [60, 60, 70, 70]


def test_merge_aware_steps_among_the_candidates_or_in_the_video() -> None:
    candidates = Chosen(0, 30, 90, candidates=11)  # 0, 9.9, 19.8 and so on, rounded down
    video = scene(101)
    assert OffsetNeighbor()(candidates, video, 6) == [0, 10, 30, 40, 80, 90]
    assert OffsetNeighbor(of="video")(candidates, video, 6) == [0, 1, 30, 31, 89, 90]


def test_merge_aware_at_random_is_drawn_anew_each_epoch_but_reproducibly() -> None:
    views = Chosen(*range(0, 100, 10))
    drawn = [tuple(OffsetNeighbor("random")(views, scene(100, epoch), 20)) for epoch in (0, 0, 1, 2)]
    assert drawn[0] == drawn[1] and len(set(drawn)) > 1


@pytest.mark.filterwarnings("ignore:.*frames to choose from")
@pytest.mark.parametrize("pairing", EVERY, ids=lambda p: f"{type(p).__name__}-{'-'.join(map(str, vars(p).values()))}")
@pytest.mark.parametrize("sampler", [UniformSampler(), UniformSampler("floor_128"), RandomSampler()])
def test_any_sampler_any_video(pairing: FramePairing, sampler: FrameSampler) -> None:
    for total, n in itertools.product([1, 2, 3, 5, 17, 300], [2, 3, 6, 15, 16]):
        frames = pairing(sampler, scene(total), n)
        assert frames == sorted(frames) and len(frames) % 2 == 0 and 2 <= len(frames) <= 2 * (n + 1)
        assert frames[0] >= 0 and frames[-1] < total
        if n % 2 == 0:
            assert len(frames) == (2 * n if vars(pairing).get("keep") == "views" else n)
        if isinstance(pairing, Duplicate):
            assert frames[::2] == frames[1::2]
        if isinstance(pairing, Neighbor):
            assert all(b - a == 1 or a == b == total - 1 for a, b in zip(frames[::2], frames[1::2], strict=True))


@pytest.mark.parametrize("pairing", EVERY, ids=lambda p: f"{type(p).__name__}-{'-'.join(map(str, vars(p).values()))}")
def test_a_video_that_is_too_short_repeats_its_last_view_and_says_so(pairing: FramePairing) -> None:
    with pytest.warns(UserWarning, match=r"clip: only 3 frames to choose from, (8|16) were asked for"):
        frames = pairing(UniformSampler(), scene(3), 16)
    assert set(frames) == {0, 1, 2} and frames[-6:] == [2] * 6
    stops = Chosen(0, 2)
    stops.stops_early, stops.choose = True, lambda scene, n: [0, 2]  # fewer than asked for, and means it
    assert len(pairing(stops, scene(30), 16)) <= 4


def test_too_few_frames_is_an_error_whatever_the_pairing() -> None:
    for pairing in EVERY:
        with pytest.raises(ValueError, match="1 frames of a video are too few"):
            pairing(UniformSampler(), scene(10), 1)


def test_time_is_that_from_token_to_token() -> None:
    assert seconds_per_grid([0.0, 1.0, 2.0, 3.0]) == 2.0
    assert seconds_per_grid([0.0, 0.1, 2.0, 2.1, 4.0, 4.1]) == 2.0  # neighbors: the views are 2 s apart
    assert seconds_per_grid([0.0, 0.0, 2.0, 2.0, 4.0, 4.0]) == 2.0
    assert seconds_per_grid([0.0, 1.0]) == 2.0  # one token: as in a clip at even steps
    assert seconds_per_grid([5.0, 5.0]) == 0.0


@pytest.mark.parametrize("pairing", EVERY)
def test_few_candidates_make_few_frames_whatever_the_pairing(pairing: FramePairing) -> None:
    """And no last view again and again in the place of more."""
    frames = pairing(UniformSampler("linspace_floor", candidates=4), scene(128), 16)
    assert len(frames) in (4, 8) and max(frames.count(frame) for frame in frames) <= 2
