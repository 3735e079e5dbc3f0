"""Pose samplers: the official picks, invariances, missing poses; every sampler on real scenes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from datamodules.samplers import (
    FrameSampler,
    PoseFarthestSampler,
    PosePlaneSampler,
    SceneView,
    UniformSampler,
)
from datamodules.samplers.pose_farthest import pose_matrix, pose_plane
from datamodules.trajectories.base import upright_turns
from datamodules.video import Video
from tests.poses import random_poses
from zoo.cameras.poses import invert_se3, nearest_rotation

GOLDEN = Path(__file__).parents[2] / "golden/pose_sampling"
CASES = ("line20", "loop64", "rot50_noisy", "static8", "walk40")
NORMALISE = {"max_norm": "max", "data_driven": "std", "std_norm": "std"}
MODES = {"grid": "grid", "hybrid": "hybrid", "fps_2d": "farthest"}


def scene(world_to_camera: torch.Tensor, num_frames: int | None = None, **more: Any) -> SceneView:
    video = Video.__new__(Video)
    video.num_frames, video.path = num_frames or len(world_to_camera), Path("clip.mp4")
    return SceneView(video, world_to_camera, **more)


@pytest.mark.parametrize("case", CASES)
def test_golden_distances(case: str) -> None:
    tensors = load_file(GOLDEN / f"{case}.safetensors")
    poses = tensors["poses_c2w"].numpy()
    for name, normalize in (("dist_max_norm", "max"), ("dist_data_driven", "std")):
        np.testing.assert_allclose(pose_matrix(poses, normalize), tensors[name].numpy(), rtol=1e-12, atol=1e-12)
    away, turned = (tensors[f"farness_{part}"].numpy() for part in ("trans_np_scale_None", "rot_np"))
    plane = pose_plane(poses, "max")
    np.testing.assert_allclose(plane[:, 0] * max(away.max(), 1e-6), away, atol=1e-12)
    np.testing.assert_allclose(plane[:, 1] * (turned.max() if turned.max() > 1e-6 else 1), turned, atol=1e-12)


@pytest.mark.parametrize("case", CASES)
def test_golden_picks(case: str) -> None:
    """In the order of picking; the fork takes its poses as they are, hence the switch."""
    poses = load_file(GOLDEN / f"{case}.safetensors")["poses_c2w"]
    results = json.loads((GOLDEN / f"{case}.json").read_text())["results"]
    for row in results["fps"]:
        sampler: FrameSampler = PoseFarthestSampler(
            NORMALISE[row["distance_mode"]], row["starting_mode"], translation="world_to_camera"
        )
        assert sampler.choose(scene(poses), row["k"]) == row["selected"], row
    for row in results["efficient"]:
        sampler = PosePlaneSampler(
            MODES[row["sampling_mode"]],
            NORMALISE[row["normalization"]],
            row["starting_mode"],
            row["skip_first_frame"],
            translation="world_to_camera",
        )
        assert sampler.choose(scene(poses), row["k"]) == row["selected"], row
    assert len(results["fps"]) >= 4 and len(results["efficient"]) >= 28


@pytest.mark.parametrize("case", ["loop64", "walk40"])  # rotations that invert exactly
def test_golden_picks_by_camera_centers(case: str) -> None:
    """The same picks from world-to-camera poses; taken by their translations they are others."""
    poses = invert_se3(load_file(GOLDEN / f"{case}.safetensors")["poses_c2w"])
    differ = 0
    for row in json.loads((GOLDEN / f"{case}.json").read_text())["results"]["fps"]:
        words = NORMALISE[row["distance_mode"]], row["starting_mode"]
        assert PoseFarthestSampler(*words).choose(scene(poses), row["k"]) == row["selected"], row
        other = PoseFarthestSampler(*words, translation="world_to_camera")
        differ += other.choose(scene(poses), row["k"]) != row["selected"]
    assert differ  # negative control


@pytest.mark.parametrize("kind", [PoseFarthestSampler, PosePlaneSampler])
def test_views_are_among_the_candidates(kind: type[FrameSampler]) -> None:
    poses, pool = random_poses(48), set(np.linspace(0, 47, 12, dtype=int).tolist())
    assert set(kind(candidates=12)(scene(poses), 8)) <= pool and not set(kind()(scene(poses), 8)) <= pool


@pytest.mark.parametrize(
    "sampler", [PoseFarthestSampler("max"), PoseFarthestSampler("std", "medoid"), PosePlaneSampler()]
)
def test_another_world_changes_nothing_but_for_translations_of_world_to_camera(sampler: FrameSampler) -> None:
    poses, world = random_poses(60), random_poses(1, seed=9)
    assert sampler(scene(poses), 8) == sampler(scene(poses @ world), 8)
    sampler.translation = "world_to_camera"
    assert sampler(scene(poses), 8) != sampler(scene(poses @ world), 8)  # negative control


@pytest.mark.parametrize("sampler", [PoseFarthestSampler(), PoseFarthestSampler(start="random"), PosePlaneSampler()])
def test_frames_without_a_pose_are_never_chosen(sampler: FrameSampler) -> None:
    poses = random_poses(40)
    poses[::3] = torch.nan
    poses[1, 0, 3] = torch.inf
    poses[2, 2, 2] = torch.nan
    without = {i for i in range(40) if i % 3 == 0 or i in (1, 2)}
    for n in (2, 16, 24):
        chosen = sampler(scene(poses), n)
        assert len(chosen) == n and not set(chosen) & without
    few = scene(torch.where(torch.arange(40)[:, None, None] == 7, random_poses(40), torch.nan))
    with pytest.warns(UserWarning, match="clip: only 1 frames"):
        assert sampler(few, 4) == [7] * 4


def test_no_pose_at_all_and_too_many_are_errors_with_the_video() -> None:
    with pytest.raises(ValueError, match="clip.mp4: no frame has a pose"):
        PoseFarthestSampler()(scene(torch.full((5, 4, 4), torch.nan, dtype=torch.float64)), 2)
    with pytest.raises(ValueError, match="clip.mp4: 5 poses for 4 frames"):
        scene(random_poses(5), num_frames=4)


def test_a_random_start_is_drawn_anew_each_epoch_but_reproducibly() -> None:
    poses = random_poses(50)
    draws = [tuple(PoseFarthestSampler(start="random")(scene(poses, epoch=epoch), 4)) for epoch in (0, 0, 1, 2, 3)]
    assert draws[0] == draws[1] and len(set(draws)) > 1
    assert PoseFarthestSampler(start="random", seed=1)(scene(poses), 4) != list(draws[0])


@pytest.mark.parametrize("name", ["arkits_47204578", "scene0149_00", "spp_5748ce6f01"])
def test_pose_samplers_spread_views_along_vsibenchs_own_trajectories(name: str, realdata: Path) -> None:
    (file,) = (realdata / "scenes/vsibench_trajectories").glob(f"{name}*.json")
    camera_to_world = torch.tensor(json.loads(file.read_text())["gt"]["poses"], dtype=torch.float64).reshape(-1, 4, 4)
    camera_to_world[:, :3, :3] = nearest_rotation(camera_to_world[:, :3, :3])
    view = scene(invert_se3(camera_to_world))
    distances = pose_matrix(camera_to_world.numpy())
    np.fill_diagonal(distances, np.inf)

    def apart(sampler: FrameSampler) -> float:
        """The distance of the two closest views."""
        chosen = sampler(view, 16)
        return float(distances[np.ix_(chosen, chosen)].min())

    even = apart(UniformSampler())
    assert apart(PoseFarthestSampler()) > 1.5 * even and apart(PosePlaneSampler()) > even
    assert upright_turns(view.world_to_camera) == 0  # its pictures are upright
