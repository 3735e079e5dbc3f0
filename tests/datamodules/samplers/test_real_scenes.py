"""Every sampler and pairing on a real scene with real poses and depth, where ZOO_REALDATA has it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from callbacks.drawings import compute_coverage, covered_voxels
from datamodules.samplers import (
    Consecutive,
    DatasetDepth,
    Duplicate,
    FrameSampler,
    Neighbor,
    OffsetNeighbor,
    PoseFarthestSampler,
    PosePlaneSampler,
    RandomSampler,
    SceneView,
    SpaceAwareSampler,
    UniformSampler,
)
from datamodules.samplers.pose_farthest import pose_matrix
from datamodules.trajectories.base import upright_turns
from datamodules.video import Video
from zoo.cameras import normalize_intrinsics
from zoo.cameras.poses import invert_se3, nearest_rotation

SAMPLERS = {
    "uniform": UniformSampler(),
    "random": RandomSampler(),
    "space-aware": SpaceAwareSampler(DatasetDepth(128), cache=None),
    "pose-farthest": PoseFarthestSampler(start="medoid"),
    "pose-plane": PosePlaneSampler(),
}


@pytest.fixture
def kitchen(realdata: Path) -> SceneView:
    """Every tenth frame of 7-Scenes RedKitchen."""
    folder = realdata / "scenes/7scenes_redkitchen"
    poses = torch.from_numpy(np.loadtxt(folder / "poses_c2w.txt"))[::10, 1:].reshape(-1, 4, 4).clone()
    poses[:, :3, :3] = nearest_rotation(poses[:, :3, :3])
    K = normalize_intrinsics(torch.from_numpy(np.loadtxt(folder / "camera-intrinsics.txt")), 640, 480)
    return SceneView(Video(folder / "rgb"), invert_se3(poses), K.repeat(len(poses), 1, 1), folder / "depth")


@pytest.mark.parametrize(
    "name", [pytest.param(each, marks=pytest.mark.slow if each == "space-aware" else ()) for each in SAMPLERS]
)
def test_every_pairing_of_every_sampler(kitchen: SceneView, name: str) -> None:
    sampler: FrameSampler = SAMPLERS[name]
    for pairing in (Consecutive(), Neighbor(), Duplicate(), Duplicate("views"), OffsetNeighbor()):
        frames = pairing(sampler, kitchen, 8)
        assert len(frames) == (16 if vars(pairing).get("keep") == "views" else 8)
        assert frames == sorted(frames) and len(set(frames)) >= 4


@pytest.mark.slow
def test_space_aware_views_see_more_of_the_kitchen_than_the_others(kitchen: SceneView) -> None:
    frames, maps = compute_coverage(kitchen, [])

    def share(sampler: FrameSampler) -> float:
        *seen, everything = covered_voxels(maps, [frames.index(frame) for frame in sampler(kitchen, 8)]).sets
        return len(np.unique(np.concatenate(seen), axis=0)) / len(everything)

    shares = {name: share(sampler) for name, sampler in SAMPLERS.items()}
    assert max(shares, key=shares.__getitem__) == "space-aware" and shares["space-aware"] > shares["uniform"] + 0.05


@pytest.mark.parametrize(
    "name", ["arkits_47204578", "scene0149_00", "scene0645_00", "spp_5748ce6f01", "spp_bcd2436daf"]
)
def test_pose_samplers_spread_views_along_vsibenchs_own_trajectories(name: str, realdata: Path) -> None:
    (file,) = (realdata / "scenes/vsibench_trajectories").glob(f"{name}*.json")
    camera_to_world = torch.tensor(json.loads(file.read_text())["gt"]["poses"], dtype=torch.float64).reshape(-1, 4, 4)
    camera_to_world[:, :3, :3] = nearest_rotation(camera_to_world[:, :3, :3])
    video = Video.__new__(Video)
    video.num_frames, video.path = len(camera_to_world), file
    scene = SceneView(video, invert_se3(camera_to_world))
    distances = pose_matrix(camera_to_world.numpy())
    np.fill_diagonal(distances, np.inf)

    def apart(sampler: FrameSampler) -> float:
        """The distance of the two closest views."""
        chosen = sampler(scene, 16)
        return float(distances[np.ix_(chosen, chosen)].min())

    assert apart(PoseFarthestSampler()) > 1.5 * apart(UniformSampler()) and apart(PosePlaneSampler()) > apart(
        UniformSampler()
    )
    assert upright_turns(scene.world_to_camera) == 0  # its pictures are upright
