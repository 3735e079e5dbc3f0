"""Every sampler and pairing on a real scene with real poses and depth, where ZOO_REALDATA has it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from callbacks.pictures import covered_voxels
from datamodules.samplers import (
    Consecutive,
    Duplicate,
    FrameSampler,
    GivenDepth,
    MergeAware,
    Neighbour,
    PoseFarthestSampler,
    PosePlaneSampler,
    RandomSampler,
    SceneView,
    SpaceAwareSampler,
    UniformSampler,
)
from datamodules.video import Video
from zoo.cameras import invert_se3, nearest_rotation, normalise_intrinsics

SAMPLERS = {
    "uniform": UniformSampler(),
    "random": RandomSampler(),
    "space-aware": SpaceAwareSampler(GivenDepth(128), cache=None),
    "pose-farthest": PoseFarthestSampler(start="medoid"),
    "pose-plane": PosePlaneSampler(),
}


@pytest.fixture
def kitchen(realdata: Path) -> SceneView:
    """Every tenth frame of 7-Scenes RedKitchen."""
    folder = realdata / "scenes/7scenes_redkitchen"
    poses = torch.from_numpy(np.loadtxt(folder / "poses_c2w.txt"))[::10, 1:].reshape(-1, 4, 4).clone()
    poses[:, :3, :3] = nearest_rotation(poses[:, :3, :3])
    K = normalise_intrinsics(torch.from_numpy(np.loadtxt(folder / "camera-intrinsics.txt")), 640, 480)
    return SceneView(Video(folder / "rgb"), invert_se3(poses), K.repeat(len(poses), 1, 1), folder / "depth")


@pytest.mark.parametrize("name", SAMPLERS)
def test_every_pairing_of_every_sampler(kitchen: SceneView, name: str) -> None:
    sampler: FrameSampler = SAMPLERS[name]
    for pairing in (Consecutive(), Neighbour(), Duplicate(), Duplicate("views"), MergeAware()):
        frames = pairing(sampler, kitchen, 8)
        assert len(frames) == (16 if vars(pairing).get("keep") == "views" else 8)
        assert frames == sorted(frames) and len(set(frames)) >= 4


def test_space_aware_views_see_more_of_the_kitchen_than_the_others(kitchen: SceneView) -> None:
    def share(sampler: FrameSampler) -> float:
        *seen, everything = covered_voxels(kitchen, sampler(kitchen, 8)).sets
        return len(np.unique(np.concatenate(seen), axis=0)) / len(everything)

    shares = {name: share(sampler) for name, sampler in SAMPLERS.items()}
    assert max(shares, key=shares.__getitem__) == "space-aware" and shares["space-aware"] > shares["uniform"] + 0.05
