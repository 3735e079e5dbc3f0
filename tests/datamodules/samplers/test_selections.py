"""Selections on disk: never stale, never half, in the form that the official scripts have."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
from PIL import Image

from datamodules.samplers import (
    Consecutive,
    FramePairing,
    FrameSampler,
    Neighbor,
    OffsetNeighbor,
    SceneView,
    SelectedFrames,
)
from datamodules.samplers.selection_files import FILE, read_selection, write_selection
from datamodules.video import Video
from zoo.errors import InputError


@pytest.fixture
def video(tmp_path: Path) -> Video:
    """A folder of 12 frames, each of one gray."""
    folder = tmp_path / "mine" / "kitchen"
    folder.mkdir(parents=True)
    for i in range(12):
        Image.new("RGB", (8, 6), (20 * i,) * 3).save(folder / f"{i:03d}.png")
    return Video(folder)


class Counting(FrameSampler):
    """Takes every `step`-th frame, and counts how often it was asked to."""

    asked = 0

    def __init__(self, step: int, cache: str | None, candidates: int | None = None) -> None:
        self.step, self.cache, self.candidates = step, cache, candidates

    def choose(self, scene: SceneView, n: int) -> list[int]:
        Counting.asked += 1
        return list(range(0, len(scene.pool), self.step))[:n]


def asked_anew(sampler: FrameSampler, scene: SceneView | Video, n: int = 4) -> bool:
    before = Counting.asked
    sampler(scene, n)
    return Counting.asked > before


def test_a_selection_is_made_once_and_anew_for_whatever_changes_it(video: Video, tmp_path: Path) -> None:
    kept = str(tmp_path / "kept")
    assert asked_anew(Counting(2, kept), video) and not asked_anew(Counting(2, kept), Video(video.path))
    assert Counting(2, kept)(video, 4) == [0, 2, 4, 6]
    assert asked_anew(Counting(2, None), video)  # negative control: without a cache
    poses = torch.eye(4, dtype=torch.float64).repeat(12, 1, 1)
    scene = SceneView(video, poses, torch.eye(3).repeat(12, 1, 1))
    sampler = Counting(2, kept)
    assert asked_anew(sampler, scene) and not asked_anew(sampler, scene)
    assert asked_anew(Counting(3, kept), scene)
    assert asked_anew(Counting(2, kept, candidates=6), scene)
    assert asked_anew(sampler, scene, n=6)
    assert asked_anew(sampler, SceneView(video, poses, scene.K_normalized, frames=range(0, 12, 2)))
    assert asked_anew(sampler, SceneView(video, poses, scene.K_normalized, frames=range(1, 12, 2)))
    moved = poses.clone()
    moved[3, 0, 3] = 1e-9
    assert asked_anew(sampler, SceneView(video, moved, scene.K_normalized))
    assert asked_anew(sampler, SceneView(video, poses, 2 * scene.K_normalized))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Counting, "version", 2)
        assert asked_anew(Counting(2, kept), scene)
    depth = tmp_path / "kitchen.depth"
    depth.mkdir()
    (depth / "0.png").write_bytes(b"one")
    with_depth = SceneView(video, poses, scene.K_normalized, depth)
    assert asked_anew(sampler, with_depth) and not asked_anew(sampler, with_depth)
    (depth / "1.png").write_bytes(b"one")
    assert asked_anew(sampler, with_depth) and not asked_anew(sampler, with_depth)
    (depth / "1.png").write_bytes(b"two")  # not the first one, and of equal size
    assert asked_anew(sampler, with_depth)
    Image.new("RGB", (8, 6), "red").save(video.path / "000.png")
    assert asked_anew(sampler, SceneView(Video(video.path), poses, scene.K_normalized))
    assert not asked_anew(sampler, SceneView(Video(video.path), poses, scene.K_normalized))


def test_a_file_cut_short_is_made_again(video: Video, tmp_path: Path) -> None:
    sampler = Counting(2, str(tmp_path / "kept"))
    first = sampler(video, 4)
    (file,) = (tmp_path / "kept").iterdir()
    whole = file.read_text()
    for spoilt in (whole[: len(whole) // 2], "", "[]"):
        file.write_text(spoilt)
        assert asked_anew(sampler, video) and sampler(video, 4) == first
        assert read_selection(file)["selected_frames"] == first


def test_official_files_are_read_and_ours_have_their_fields(video: Video, tmp_path: Path) -> None:
    official = {"scene_name": "kitchen", "selected_frames": [1, 5, 11], "num_frames": 3}
    for folder in ("chosen/kitchen", "other/mine/kitchen"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / FILE).write_text(json.dumps(official))
    assert SelectedFrames(str(tmp_path / "chosen"))(video, 4) == [1, 5, 11, 11]
    assert SelectedFrames(str(tmp_path / "other"))(video, 16) == [1, 5, 11, 11]  # fewer, as the official ones may hold
    named = SceneView(video, name="mine/kitchen")
    write_selection(tmp_path / "ours" / named.scene_name / FILE, named.scene_name, [2, 3], "key")
    assert SelectedFrames(str(tmp_path / "ours"))(named, 2) == [2, 3]
    assert official.keys() <= read_selection(tmp_path / "ours/mine/kitchen" / FILE).keys()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "can't be read.*python main.py select-frames"),
        ('{"selected_frames": [1, 2', "not valid JSON"),
        ('{"selected_frames": "all"}', "list of frame indices"),
        ('{"selected_frames": [1, 2], "num_frames": 3}', "2 frames, but num_frames is 3"),
        ('{"selected_frames": [1, 12]}', "frame 12 of a video of 12 frames"),
        ('{"selected_frames": [1, 2, 3, 4, 5]}', "5 frames were selected, 4 are asked for"),
        ('{"selected_frames": [1, 2], "made_by": {"video": "5f0c"}}', "selected from another version of"),
        ('{"selected_frames": [1, 2], "made_by": [1]}', "made_by must be an object"),
    ],
)
def test_files_that_do_not_fit_are_one_line_with_their_name(
    video: Video, tmp_path: Path, content: str | None, said: str
) -> None:
    (tmp_path / "chosen/kitchen").mkdir(parents=True)
    if content is not None:
        (tmp_path / "chosen/kitchen" / FILE).write_text(content)
    with pytest.raises(ValueError, match=rf"kitchen.*selected_frames.json: .*{said}"):
        SelectedFrames(str(tmp_path / "chosen"))(video, 4)


@pytest.mark.filterwarnings("ignore:.*frames to choose from")
@pytest.mark.parametrize(
    "pairing", [Consecutive(), Neighbor(), OffsetNeighbor(), OffsetNeighbor(step=2), OffsetNeighbor(of="video")]
)
def test_what_is_read_back_is_paired_as_what_was_chosen(pairing: FramePairing, video: Video, tmp_path: Path) -> None:
    """Neighbors may be counted among the candidates, which the file has to know."""
    scene, chosen = SceneView(video, name="a/kitchen"), SelectedFrames(str(tmp_path))
    for sampler in (Counting(2, None), Counting(2, None, candidates=6)):
        for frames in (4, 40):  # the video has 12, and is filled up
            views = pairing.views(frames, sampler)
            key, made_by = sampler.key(scene, views)
            write_selection(tmp_path / "a/kitchen" / FILE, "a/kitchen", sampler.select(scene, views), key, made_by)
            assert pairing(chosen, scene, frames) == pairing(sampler, scene, frames)


def test_a_view_that_is_no_candidate_has_no_neighbor_among_them(video: Video, tmp_path: Path) -> None:
    made_by = {"sampler": {"candidates": 3}}
    write_selection(tmp_path / "a/kitchen" / FILE, "a/kitchen", [0, 4], "key", made_by)
    scene, chosen = SceneView(video, name="a/kitchen"), SelectedFrames(str(tmp_path))
    with pytest.raises(ValueError, match="frame 4 was chosen but is not a candidate.*--data.frame_pairing.of video"):
        OffsetNeighbor()(chosen, scene, 4)
    assert OffsetNeighbor(of="video")(chosen, scene, 4) == [0, 1, 3, 4]
    with pytest.raises(InputError, match="step 0: at least 1"):
        OffsetNeighbor(step=0)


TABLES = Path(__file__).parents[2] / "golden" / "novel_view" / "tables.json"


@pytest.mark.parametrize(
    "case", json.loads(TABLES.read_text())["real_neighbours"], ids=lambda case: str(case["random_seed"])
)
def test_neighbors_at_random_steps_are_the_published_ones(case: dict[str, Any]) -> None:
    pairing = OffsetNeighbor(case["mode"], step=case["max_step"], of="video", random_step=True)
    frames = range(case["total"])
    drawn = pairing.drawn(case["anchors"], frames, dict(enumerate(frames)), Random(case["random_seed"]))
    assert drawn == case["result"] and pairing.varies_by_epoch


def test_random_steps_differ_by_epoch_and_not_by_call(video: Video) -> None:
    pairing, scene = OffsetNeighbor(step=3, of="video", random_step=True), SceneView(video)
    first, *others = (pairing.pair([0, 5, 11], replace(scene, epoch=epoch)) for epoch in range(6))
    assert pairing.pair([0, 5, 11], scene) == first and any(other != first for other in others)
