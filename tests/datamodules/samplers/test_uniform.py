"""Uniform frames by each rule, equal to the official tables; random frames."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from datamodules.samplers import FrameSampler, RandomSampler, SceneView, UniformSampler
from datamodules.video import Video
from zoo.errors import InputError

TABLES = json.loads((Path(__file__).parents[2] / "golden/preprocess/tables.json").read_text())
pytestmark = pytest.mark.filterwarnings("ignore:.*frames to choose from")
RULES = ["qwen_vl_utils", "linspace_floor", "floor_128"]


def clip(num_frames: int, name: str = "clip.mp4") -> Video:
    """A video of which only the length is known: all that a uniform sampler asks for."""
    video = Video.__new__(Video)
    video.num_frames, video.path = num_frames, Path(name)
    return video


def test_golden_inference_indices():
    checked = 0
    for row in TABLES["frame_indices_inference"]:
        if "indices" in row:
            assert UniformSampler()(clip(row["total"]), row["nframes"]) == row["indices"], row
            checked += 1
        else:  # the official code refuses, here the last frame is repeated
            frames = UniformSampler()(clip(row["total"]), row["nframes"])
            assert frames[: row["total"]] == list(range(row["total"])) and set(frames[row["total"] :]) == {
                row["total"] - 1
            }
    assert checked > 20


def test_golden_training_indices():
    for row in TABLES["frame_indices_training"]:
        expected = row["indices"]
        if row["total"] < row["video_min_frames"] or len(expected) % 2:
            continue  # shorter than asked for: see the test of short videos
        assert UniformSampler("linspace_floor")(clip(row["total"]), len(expected)) == expected, row


def test_golden_candidates():
    for row in TABLES["sa_candidate_indices"]:
        frames = UniformSampler("floor_128")(clip(row["total"]), 128)
        assert sorted(set(frames)) == row["candidates"]


def test_floor_128_takes_its_frames_from_the_candidates():
    candidates = UniformSampler("floor_128")(clip(500), 128)
    frames = UniformSampler("floor_128")(clip(500), 16)
    assert len(frames) == 16 and set(frames) <= set(candidates) and (frames[0], frames[-1]) == (0, 499)
    assert frames != UniformSampler("linspace_floor")(clip(500), 16)  # negative control: rounding twice shows
    assert len(UniformSampler("floor_128")(clip(500), 200)) == 128


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("total", [1, 2, 3, 7, 16, 127, 128, 129, 1000])
@pytest.mark.parametrize("n", [2, 3, 8, 15, 16, 17, 64])
def test_sorted_even_within_the_video_and_never_repeated_without_need(rule, total, n):
    frames = UniformSampler(rule)(clip(total), n)
    assert frames == sorted(frames) and len(frames) % 2 == 0 and abs(len(frames) - n) <= 1
    assert frames[0] == 0 and frames[-1] == total - 1
    repeated = len(frames) - len(set(frames))
    if rule == "qwen_vl_utils" or n % 2 == 0:
        assert repeated == max(0, len(frames) - total)
    if repeated:
        assert frames[-1 - repeated :] == [total - 1] * (repeated + 1)


@pytest.mark.parametrize("n", [2, 16, 127, 200])
def test_any_pool_of_candidates(n):
    frames = UniformSampler("linspace_floor", candidates=128)(clip(500), n)
    assert frames == UniformSampler("floor_128")(clip(500), n)
    few = UniformSampler("linspace_floor", candidates=20)(clip(500), n)
    assert set(few) <= set(UniformSampler("linspace_floor")(clip(500), 20)) and len(few) == min(n, 20)
    with pytest.raises(InputError, match="floor_128 has 128 candidates, not 64"):
        UniformSampler("floor_128", candidates=64)


def test_a_new_sampler_needs_only_choose():
    class LastSampler(FrameSampler):
        def choose(self, scene, n):
            return [len(scene.pool) - 1]

    assert LastSampler()(clip(10), 3) == [9, 9, 9, 9]
    with pytest.raises(TypeError):
        type("Empty", (FrameSampler,), {})()


# ---- random frames


def at(epoch: int, name: str = "clip.mp4") -> SceneView:
    return SceneView(clip(48, name), epoch=epoch)


def test_one_frame_of_each_stretch() -> None:
    for epoch in range(20):
        chosen = RandomSampler()(at(epoch), 8)
        assert [frame // 6 for frame in chosen] == list(range(8))


def test_anew_each_epoch_seed_and_video_but_reproducibly() -> None:
    first = RandomSampler()(at(0), 8)
    assert RandomSampler()(at(0), 8) == first
    others = [RandomSampler()(at(1), 8), RandomSampler(seed=1)(at(0), 8), RandomSampler()(at(0, "other.mp4"), 8)]
    assert all(other != first for other in others)


def test_a_short_video_repeats_its_last_frame() -> None:
    with pytest.warns(UserWarning, match="clip: only 3 frames to choose from, 6 were asked for"):
        assert RandomSampler()(clip(3), 6) == [0, 1, 2, 2, 2, 2]
