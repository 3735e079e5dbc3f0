"""A scene as it is read: its frames, cameras and times are those of the frames that sampler and pairing chose."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from datamodules import PixelBounds, Rooms
from datamodules.cameras_file import read_cameras, write_cameras
from datamodules.dataset import SceneDataset
from datamodules.depth import read_depth
from datamodules.question_sampler import TrainingItem
from datamodules.samplers import (
    Consecutive,
    DatasetDepth,
    Duplicate,
    FramePairing,
    FrameSampler,
    Neighbor,
    OffsetNeighbor,
    PoseFarthestSampler,
    PosePlaneSampler,
    RandomSampler,
    SpaceAwareSampler,
    UniformSampler,
)
from datamodules.scenes import Question, Scene
from datamodules.video import Video
from tests.cases import each_once
from tests.conftest import ROOMS
from tests.datamodules.batches import question_batch, training_batch
from zoo.backbones.qwen25_vl import tiny_preprocessor
from zoo.model_spec import ModelSpec

TINY = PixelBounds(784, 65536, legacy_folder_resize=False)
PAIRINGS = {
    "consecutive": Consecutive(),
    "neighbor": Neighbor(),
    "duplicate": Duplicate(),
    "duplicate_views": Duplicate("views"),
    "merge_aware": OffsetNeighbor(step=2),
}
SAMPLERS = {
    "uniform": UniformSampler,
    "random": RandomSampler,
    "space_aware": lambda candidates=None: SpaceAwareSampler(DatasetDepth(28), candidates=candidates, cache=None),
    "pose_farthest": PoseFarthestSampler,
    "pose_plane": PosePlaneSampler,
}


def dataset(rooms_root: Path, sampler: FrameSampler, pairing: FramePairing) -> SceneDataset:
    scenes = Rooms(scenes=ROOMS, root=str(rooms_root), workers=1).scenes("test")
    return SceneDataset(
        scenes, sampler, 8, TINY, spec=ModelSpec(requires_cameras=True, requires_depth=True), frame_pairing=pairing
    )


@pytest.mark.parametrize(("sampler", "pairing"), each_once([*SAMPLERS], [*PAIRINGS]))
def test_cameras_depth_and_times_follow_the_frames(sampler: str, pairing: str, rooms_root: Path) -> None:
    scenes = dataset(rooms_root, SAMPLERS[sampler](), PAIRINGS[pairing])
    loaded = scenes[0]
    chosen, video = list(loaded.frame_indices), Video(scenes.scenes[0].video)
    assert len(chosen) == (16 if pairing == "duplicate_views" else 8)
    assert torch.equal(loaded.frames, video.read(chosen))  # 56 x 56 stay as they are
    poses, K = read_cameras(scenes.scenes[0].cameras, video.num_frames, video.height, video.width)
    assert torch.equal(loaded.geometry.world_to_camera, poses[chosen])
    assert torch.equal(loaded.geometry.K_normalized, K[chosen])
    everything = SceneDataset(
        scenes.scenes, UniformSampler(), 48, TINY, spec=ModelSpec(requires_cameras=True, requires_depth=True)
    )[0]  # fmt: skip
    assert torch.equal(loaded.geometry.depth, everything.geometry.depth[chosen])
    assert not torch.equal(loaded.geometry.depth, everything.geometry.depth[[i - 1 for i in chosen]])  # control
    first = [video.times_s[i] for i in chosen[::2]]
    assert loaded.seconds_per_grid == pytest.approx((first[-1] - first[0]) / (len(first) - 1))


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_any_sampler_chooses_among_candidates(sampler: str, rooms_root: Path) -> None:
    pool = {0, 4, 8, 12, 17, 21, 25, 29, 34, 38, 42, 47}  # 12 of 48 frames at even steps, rounded down
    every, few = SAMPLERS[sampler](), SAMPLERS[sampler](candidates=12)
    chosen = [dataset(rooms_root, each, Consecutive())[0].frame_indices for each in (every, few)]
    assert len(set(chosen[1])) == 8 and set(chosen[1]) <= pool
    assert not set(chosen[0]) <= pool  # control: among all frames it takes others
    merged = dataset(rooms_root, few, OffsetNeighbor())[0].frame_indices  # its neighbors are candidates too
    assert set(merged) <= pool and len(merged) == 8
    raw = dataset(rooms_root, few, OffsetNeighbor(of="video"))[0].frame_indices
    assert not set(raw) <= pool


@pytest.mark.parametrize("keep", [True, False])
def test_kept_scenes_read_the_depth_of_a_frame_once(
    keep: bool, rooms_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []

    def counted(file: Path, indices: list[int], **more: object) -> torch.Tensor:
        asked.extend(indices)
        return read_depth(file, indices, **more)

    monkeypatch.setattr("datamodules.dataset.read_depth", counted)
    scenes = Rooms(scenes=ROOMS, root=str(rooms_root), workers=1).scenes("train")[:1]
    kept = SceneDataset(
        scenes,
        RandomSampler(),
        8,
        TINY,
        spec=ModelSpec(requires_cameras=True, requires_depth=True),
        keep=keep,
        frame_pairing=Duplicate(),
    )
    for epoch in range(3):
        loaded = kept[TrainingItem(0, (0,), epoch)]
        frames = list(loaded.frame_indices)
        expected = read_depth(scenes[0].depth, frames, num_frames=48, size_hw=(56, 56))
        assert torch.equal(loaded.geometry.depth, expected)
    assert (len(asked) == len(set(asked))) is keep  # without keeping, later epochs read some again


def test_pictures_of_a_folder_have_the_times_of_their_cameras(tmp_path: Path) -> None:
    """Poses that were not known have left gaps: the times say so, a frame a second would not."""
    folder, times_s = tmp_path / "clip", [0.0, 0.1, 0.2, 7.0, 7.1, 7.2, 7.3, 7.4]
    folder.mkdir()
    for i in range(8):
        Image.new("RGB", (56, 56)).save(folder / f"{i}.png")
    K_px = torch.tensor([[[50.0, 0, 28], [0, 50, 28], [0, 0, 1]]])

    def steps(**times: list[float]) -> float | str:
        write_cameras(tmp_path / "clip.cameras.json", torch.eye(4).repeat(8, 1, 1), K_px, width=56, height=56, **times)
        scene = Scene("mine/clip", folder, (), tmp_path / "clip.cameras.json")
        loaded = SceneDataset([scene], UniformSampler(), 8, TINY, spec=ModelSpec(requires_cameras=True))[0]
        return loaded.error or loaded.seconds_per_grid

    assert steps(times_s=times_s) == pytest.approx(7.3 / 3)  # the first of four pairs at 0.0, the last at 7.3
    assert steps() == 2.0  # control: a frame a second
    assert "times_s must be 8 increasing numbers" in steps(times_s=times_s[::-1])
    assert "times_s must be 8 increasing numbers" in steps(times_s=times_s[1:])


@pytest.mark.parametrize(
    ("failures", "calls", "error"), [(0, 1, None), (1, 2, None), (2, 2, "stalled"), (9, 2, "stalled")]
)
@pytest.mark.parametrize("kind", [OSError, ValueError, RuntimeError, IndexError])
def test_a_scene_is_tried_twice(
    failures: int, calls: int, error: str | None, kind: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for frame in range(2):
        Image.fromarray(np.zeros((28, 28, 3), np.uint8)).save(tmp_path / f"{frame}.png")
    scene = Scene("a/b", tmp_path, (Question("1", "object_counting", "How many?", "4"),))
    dataset = SceneDataset([scene], UniformSampler(), 2, PixelBounds(784, 784))
    original, called = SceneDataset.open, []

    def stalls(self: SceneDataset, index: int) -> Any:
        called.append(index)
        if len(called) <= failures:
            raise kind("stalled")
        return original(self, index)

    monkeypatch.setattr(SceneDataset, "open", stalls)
    loaded = dataset[0]
    assert len(called) == calls and (loaded.frames is None) == (error is not None)
    assert str(loaded.error).startswith(str(error and f"a/b: {kind.__name__}: {error} ({__file__}:"))


def test_a_bug_is_not_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = SceneDataset([Scene("a/b", tmp_path, ())], UniformSampler(), 2, PixelBounds(784, 784))
    monkeypatch.setattr(SceneDataset, "open", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        dataset[0]


def test_damaged_depth_that_is_only_predicted_costs_no_answer(rooms_root: Path, tmp_path: Path) -> None:
    scene = replace(Rooms(scenes=ROOMS, root=str(rooms_root), workers=1).scenes("test")[0], depth=tmp_path)
    learned, read = ModelSpec(targets=("depth",)), ModelSpec(requires_depth=True)
    asked = SceneDataset([scene], UniformSampler(), 4, TINY, spec=learned)[0]
    assert asked.error is None and asked.frames is not None and asked.geometry is not None
    assert asked.geometry.depth is None and "0 depth images for 48 frames" in str(asked.target_error)
    preprocessor = tiny_preprocessor()
    answered, trained = (build(preprocessor, asked) for build in (question_batch, training_batch))
    assert not answered.failed and {each["unmeasured"] for each in answered.records} == {asked.target_error}
    assert {each["error"] for each in trained.failed} == {asked.target_error} and not trained.records
    assert "0 depth images" in str(SceneDataset([scene], UniformSampler(), 4, TINY, spec=read)[0].error)
