"""A scene as it is read: its frames, cameras and times are those of the frames that sampler and pairing chose."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from datamodules import PixelBounds, Rooms
from datamodules.cameras_file import read_cameras
from datamodules.dataset import SceneDataset
from datamodules.depth import read_depth
from datamodules.samplers import (
    Consecutive,
    Duplicate,
    FrameSampler,
    GivenDepth,
    MergeAware,
    Neighbour,
    Pairing,
    PoseFarthestSampler,
    PosePlaneSampler,
    RandomSampler,
    SpaceAwareSampler,
    UniformSampler,
)
from datamodules.video import Video
from tests.conftest import ROOMS

TINY = PixelBounds(784, 65536, folder_twice=False)
PAIRINGS = {
    "consecutive": Consecutive(),
    "neighbour": Neighbour(),
    "duplicate": Duplicate(),
    "duplicate_views": Duplicate("views"),
    "merge_aware": MergeAware(step=2),
}
SAMPLERS = {
    "uniform": UniformSampler,
    "random": RandomSampler,
    "space_aware": lambda candidates=None: SpaceAwareSampler(GivenDepth(28), candidates=candidates, cache=None),
    "pose_farthest": PoseFarthestSampler,
    "pose_plane": PosePlaneSampler,
}


def dataset(rooms_root: Path, sampler: FrameSampler, pairing: Pairing) -> SceneDataset:
    scenes = Rooms(scenes=ROOMS, root=str(rooms_root), workers=1).scenes("test")
    return SceneDataset(scenes, sampler, 8, TINY, needs_cameras=True, needs_depth=True, pairing=pairing)


@pytest.mark.parametrize("pairing", PAIRINGS)
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_cameras_depth_and_times_follow_the_frames(sampler: str, pairing: str, rooms_root: Path) -> None:
    scenes = dataset(rooms_root, SAMPLERS[sampler](), PAIRINGS[pairing])
    loaded = scenes[0]
    chosen, video = list(loaded.frame_indices), Video(loaded.scene.video)
    assert len(chosen) == (16 if pairing == "duplicate_views" else 8)
    assert torch.equal(loaded.frames, video.read(chosen))  # 56 x 56 stay as they are
    poses, K = read_cameras(loaded.scene.cameras, video.num_frames, video.height, video.width)
    assert torch.equal(loaded.geometry.world_to_camera, poses[chosen])
    assert torch.equal(loaded.geometry.K_normalised, K[chosen])
    everything = SceneDataset(
        scenes.scenes, UniformSampler(), 48, TINY, needs_cameras=True, needs_depth=True
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
    merged = dataset(rooms_root, few, MergeAware())[0].frame_indices  # its neighbours are candidates too
    assert set(merged) <= pool and len(merged) == 8
    raw = dataset(rooms_root, few, MergeAware(of="video"))[0].frame_indices
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
        scenes, RandomSampler(), 8, TINY, needs_cameras=True, needs_depth=True, keep=keep, pairing=Duplicate()
    )
    for epoch in range(3):
        loaded = kept[0, epoch]
        frames = list(loaded.frame_indices)
        expected = read_depth(scenes[0].depth, frames, num_frames=48, size_hw=(56, 56))
        assert torch.equal(loaded.geometry.depth, expected)
    assert (len(asked) == len(set(asked))) is keep  # without keeping, later epochs read some again
