"""Uniform and random frames, and which frames share a token: official tables, counts, order, time."""

from __future__ import annotations

import itertools
import json
import random
from pathlib import Path
from typing import Any

import pytest

from datamodules.samplers import (
    Consecutive,
    Duplicate,
    FramePairing,
    FrameRateSampler,
    FrameSampler,
    JitteredSampler,
    Neighbor,
    OffsetNeighbor,
    RandomSampler,
    SceneView,
    UniformSampler,
)
from datamodules.samplers.base import seconds_per_grid
from datamodules.samplers.uniform import jittered
from datamodules.video import Video
from zoo.errors import InputError

TABLES = json.loads((Path(__file__).parents[2] / "golden/preprocess/tables.json").read_text())
GOLDEN_TEXT = Path(__file__).parents[2] / "golden/cambrian_s/text"
pytestmark = pytest.mark.filterwarnings("ignore:.*frames to choose from")
RULES = ["qwen_vl_utils", "linspace_floor", "floor_128"]


def clip(num_frames: int, epoch: int = 0, name: str = "clip.mp4", rate: float | None = None) -> SceneView:
    """A video of which only the length is known, and perhaps the rate: all that these samplers ask for."""
    video = Video.__new__(Video)
    video.num_frames, video.path = num_frames, Path(name)
    times = None if rate is None else [frame / rate for frame in range(num_frames)]
    return SceneView(video, epoch=epoch, times_s=times)


def test_golden_indices_of_inference_training_and_candidates() -> None:
    for row in TABLES["frame_indices_inference"]:
        total, frames = row["total"], UniformSampler()(clip(row["total"]), row["nframes"])
        if "indices" in row:
            assert frames == row["indices"], row
        else:  # the official code refuses, here the last frame is repeated
            assert frames == [*range(total), *[total - 1] * (len(frames) - total)]
    assert sum("indices" in row for row in TABLES["frame_indices_inference"]) > 20
    for row in TABLES["frame_indices_training"]:
        expected = row["indices"]
        if row["total"] >= row["video_min_frames"] and len(expected) % 2 == 0:
            assert UniformSampler("linspace_floor")(clip(row["total"]), len(expected)) == expected, row
    for row in TABLES["sa_candidate_indices"]:
        assert sorted(set(UniformSampler("floor_128")(clip(row["total"]), 128))) == row["candidates"]


def test_golden_indices_at_a_rate_and_the_most_frames_at_even_steps() -> None:
    rows = json.loads((GOLDEN_TEXT / "frames.json").read_text())["whole"]
    for row in rows:
        view, most = clip(row["frames"], rate=row["rate"]), row["video_max_frames"]
        sampler = UniformSampler("linspace_floor") if row["video_force_sample"] else FrameRateSampler(row["video_fps"])
        assert sampler.select(view, most) == row["indices"], row
    assert FrameRateSampler(2.0).select(clip(300, rate=30.0), 128) != FrameRateSampler().select(
        clip(300, rate=30.0), 128
    )
    with pytest.raises(InputError, match="needs the times of the frames"):
        FrameRateSampler().select(clip(300), 128)


@pytest.mark.parametrize("rate", [0.5, 0.25, 0.1])
def test_a_slow_video_gives_all_of_its_frames(rate: float) -> None:
    """Where the published code divides by zero. The control: at three frames per second it gives every third."""
    assert FrameRateSampler().select(clip(20, rate=rate), 128) == list(range(20))
    assert FrameRateSampler().select(clip(20, rate=3.0), 128) == list(range(0, 20, 3))


def test_floor_128_takes_its_frames_from_the_candidates():
    candidates = UniformSampler("floor_128")(clip(500), 128)
    frames = UniformSampler("floor_128")(clip(500), 16)
    assert len(frames) == 16 and set(frames) <= set(candidates) and (frames[0], frames[-1]) == (0, 499)
    assert frames != UniformSampler("linspace_floor")(clip(500), 16)  # negative control: rounding twice shows
    assert len(UniformSampler("floor_128")(clip(500), 200)) == 128


@pytest.mark.parametrize("rule", RULES)
def test_sorted_even_within_the_video_and_never_repeated_without_need(rule: Any) -> None:
    for total, n in itertools.product([1, 2, 3, 7, 16, 127, 128, 129, 1000], [2, 3, 8, 15, 16, 17, 64]):
        frames = UniformSampler(rule)(clip(total), n)
        assert frames == sorted(frames) and len(frames) % 2 == 0 and abs(len(frames) - n) <= 1
        assert frames[0] == 0 and frames[-1] == total - 1
        repeated = len(frames) - len(set(frames))
        if rule == "qwen_vl_utils" or n % 2 == 0:
            assert repeated == max(0, len(frames) - total)
        if repeated:
            assert frames[-1 - repeated :] == [total - 1] * (repeated + 1)


def test_any_pool_of_candidates() -> None:
    for n in (2, 16, 127, 200):
        frames = UniformSampler("linspace_floor", candidates=128)(clip(500), n)
        assert frames == UniformSampler("floor_128")(clip(500), n)
        few = UniformSampler("linspace_floor", candidates=20)(clip(500), n)
        assert set(few) <= set(UniformSampler("linspace_floor")(clip(500), 20)) and len(few) == min(n, 20)
    assert set(RandomSampler(candidates=20)(clip(500), 16)) <= set(UniformSampler("linspace_floor")(clip(500), 20))
    with pytest.raises(InputError, match="floor_128 has 128 candidates, not 64"):
        UniformSampler("floor_128", candidates=64)


def test_random_frames_are_one_of_each_stretch_anew_each_epoch_seed_and_video() -> None:
    for epoch in range(20):
        assert [frame // 6 for frame in RandomSampler()(clip(48, epoch), 8)] == list(range(8))
    first = RandomSampler()(clip(48), 8)
    assert RandomSampler()(clip(48), 8) == first
    others = (RandomSampler(), clip(48, 1)), (RandomSampler(seed=1), clip(48)), (RandomSampler(), clip(48, 0, "b.mp4"))
    assert all(sampler(scene, 8) != first for sampler, scene in others)
    with pytest.warns(UserWarning, match="clip: only 3 frames"):
        assert RandomSampler()(clip(3), 6) == [0, 1, 2, 2, 2, 2]


def test_moved_frames_are_those_of_the_published_training() -> None:
    """The control: without the bound by the next frame the second case differs."""
    cases = json.loads((GOLDEN_TEXT / "pose_model.json").read_text())["training_frames"]
    cases = [each for each in cases if each["mode"] == "unified"]
    for each in cases:
        draw = random.Random(each["python_random_seed"])
        assert jittered(each["frames"], each["num_frames"], each["sample_jitter"], draw) == each["indices"]
    assert len(cases) == 2


def test_frames_are_moved_anew_each_epoch_by_a_share_of_the_video() -> None:
    even, first = UniformSampler("linspace_floor")(clip(500), 16), JitteredSampler()(clip(500), 16)
    assert JitteredSampler()(clip(500), 16) == first != even and sorted(first) == first
    assert all(abs(own - frame) <= 2 for own, frame in zip(first, even, strict=True))
    assert any(abs(own - frame) > 2 for own, frame in zip(JitteredSampler(0.02)(clip(500), 16), even, strict=True))
    assert JitteredSampler()(clip(500, 1), 16) != first != JitteredSampler(seed=1)(clip(500), 16)
    assert JitteredSampler(0)(clip(500), 16) == even and JitteredSampler().varies_by_epoch
    assert set(JitteredSampler(candidates=20)(clip(500), 16)) <= set(UniformSampler("linspace_floor")(clip(500), 20))
    with pytest.raises(InputError, match="share 1: give a number from 0 to below 1"):
        JitteredSampler(1)


# ---- pairs of frames

EVERY = [
    *(Consecutive(), Neighbor(), Duplicate(), Duplicate("views"), OffsetNeighbor(), OffsetNeighbor("before")),
    *(OffsetNeighbor("random", 2), OffsetNeighbor(of="video")),
]
each_pairing = pytest.mark.parametrize("pairing", EVERY, ids=lambda p: "-".join(map(str, (type(p), *vars(p).values()))))


class Chosen(FrameSampler):
    """Frames that the test names."""

    def __init__(self, *frames: int, candidates: int | None = None) -> None:
        self.frames, self.candidates = frames, candidates

    def choose(self, scene: SceneView, n: int) -> list[int]:
        assert n == len(self.frames)
        return [scene.pool.index(frame) for frame in self.frames]


def test_the_simple_pairings() -> None:
    assert Consecutive()(UniformSampler(), clip(100), 8) == UniformSampler()(clip(100), 8)
    assert Consecutive()(Chosen(3, 50, 60, 90), clip(100), 4) == [3, 50, 60, 90]
    assert Duplicate()(Chosen(3, 50), clip(100), 4) == [3, 3, 50, 50]
    assert Duplicate("views")(Chosen(3, 50, 60, 99), clip(100), 4) == [3, 3, 50, 50, 60, 60, 99, 99]
    assert Neighbor()(Chosen(3, 50, 99), clip(100), 6) == [3, 4, 50, 51, 99, 99]  # the last one twice
    with_pool = Chosen(0, 33, 99, candidates=4)  # next in the video, not among the candidates
    assert Neighbor()(with_pool, clip(100), 6) == [0, 1, 33, 34, 99, 99]


def test_merge_aware_follows_the_forks_rules() -> None:
    pool, near = Chosen(0, 33, 66, 99, candidates=100), Chosen(0, 4, 60)
    assert OffsetNeighbor()(pool, clip(100), 8) == [0, 1, 33, 34, 66, 67, 98, 99]  # the last looks back
    assert OffsetNeighbor("before")(pool, clip(100), 8) == [0, 1, 32, 33, 65, 66, 98, 99]  # the first looks on
    assert OffsetNeighbor(step=5)(near, clip(100), 6) == [0, 0, 4, 9, 55, 60]  # 5 would pass the second view
    assert OffsetNeighbor(step=4)(near, clip(100), 6) == [0, 0, 4, 8, 56, 60]  # and 4 would be it
    assert OffsetNeighbor(step=5)(Chosen(0, 57, 60), clip(100), 6) == [0, 5, 57, 57, 60, 60]
    assert OffsetNeighbor(step=50)(Chosen(60, 70), clip(100), 4) == [60, 60, 70, 70]
    candidates, video = Chosen(0, 30, 90, candidates=11), clip(101)  # 0, 9.9, 19.8 and so on, rounded down
    assert OffsetNeighbor()(candidates, video, 6) == [0, 10, 30, 40, 80, 90]
    assert OffsetNeighbor(of="video")(candidates, video, 6) == [0, 1, 30, 31, 89, 90]
    views = Chosen(*range(0, 100, 10))
    drawn = [tuple(OffsetNeighbor("random")(views, clip(100, epoch), 20)) for epoch in (0, 0, 1, 2)]
    assert drawn[0] == drawn[1] and len(set(drawn)) > 1


@each_pairing
def test_any_sampler_any_video(pairing: FramePairing) -> None:
    samplers = UniformSampler(), UniformSampler("floor_128"), RandomSampler()
    for sampler, total, n in itertools.product(samplers, [1, 2, 3, 5, 17, 300], [2, 3, 6, 15, 16]):
        frames = pairing(sampler, clip(total), n)
        assert frames == sorted(frames) and len(frames) % 2 == 0 and 2 <= len(frames) <= 2 * (n + 1)
        assert frames[0] >= 0 and frames[-1] < total
        if n % 2 == 0:
            assert len(frames) == (2 * n if vars(pairing).get("keep") == "views" else n)
        pairs = [*zip(frames[::2], frames[1::2], strict=True)]
        assert not isinstance(pairing, Duplicate) or all(a == b for a, b in pairs)
        assert not isinstance(pairing, Neighbor) or all(b - a == 1 or a == b == total - 1 for a, b in pairs)


@each_pairing
def test_short_videos_and_few_candidates(pairing: FramePairing) -> None:
    with pytest.warns(UserWarning, match=r"clip: only 3 frames to choose from, (8|16) were asked for"):
        frames = pairing(UniformSampler(), clip(3), 16)
    assert set(frames) == {0, 1, 2} and frames[-6:] == [2] * 6
    stops = Chosen(0, 2)
    stops.stops_early, stops.choose = True, lambda scene, n: [0, 2]  # fewer than asked for, and means it
    assert len(pairing(stops, clip(30), 16)) <= 4
    frames = pairing(UniformSampler("linspace_floor", candidates=4), clip(128), 16)  # the last view is not repeated
    assert len(frames) in (4, 8) and max(frames.count(frame) for frame in frames) <= 2
    with pytest.raises(ValueError, match="1 frames of a video are too few"):
        pairing(UniformSampler(), clip(10), 1)


def test_time_is_that_from_token_to_token() -> None:
    assert seconds_per_grid([0.0, 1.0, 2.0, 3.0]) == 2.0
    assert seconds_per_grid([0.0, 0.1, 2.0, 2.1, 4.0, 4.1]) == 2.0  # neighbors: the views are 2 s apart
    assert seconds_per_grid([0.0, 0.0, 2.0, 2.0, 4.0, 4.0]) == 2.0
    assert seconds_per_grid([0.0, 1.0]) == 2.0  # one token: as in a clip at even steps
    assert seconds_per_grid([5.0, 5.0]) == 0.0
