"""From a camera a frame to a camera a grid step: Qwen2.5-VL merges two frames into one token."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from zoo.cameras import Cameras
from zoo.errors import InputError
from zoo.geometry.base import SceneGeometry
from zoo.poses import invert_se3
from zoo.rays import token_points
from zoo.visual_grid import TEMPORAL_PATCH_SIZE

MergedCamera = Literal["first", "last", "mean"]


def step_cameras(
    scenes: Sequence[SceneGeometry | None], pair: MergedCamera = "first"
) -> tuple[Cameras, Bool[Tensor, "B C"]]:
    """The cameras of the grid steps of several scenes, shorter ones filled up; and which of them mean something.

    Args:
        scenes: each with a camera a frame, an even number of frames; None is an error like a scene without.
        pair: the camera of a step is that of the first or the last of its frames, or lies half-way between both: the
            mean of centers and intrinsics, and the mid-point of the rotations. Where one has none it is the other's.

    Raises:
        ValueError: a scene without cameras.
    """
    each = [_scene_steps(scene, pair) for scene in scenes]
    steps = max(len(present) for _, _, present in each)
    dtype, device = each[0][0].dtype, each[0][0].device
    world_to_camera = torch.eye(4, dtype=dtype, device=device).repeat(len(each), steps, 1, 1)
    intrinsics = torch.eye(3, dtype=dtype, device=device).repeat(len(each), steps, 1, 1)
    has_camera = torch.zeros(len(each), steps, dtype=torch.bool, device=device)
    for row, (poses, K, present) in enumerate(each):
        count = len(present)
        world_to_camera[row, :count], intrinsics[row, :count], has_camera[row, :count] = poses, K, present
        if count and not present.all() and present.any():
            # whatever stands in for a missing camera may be asked to be the reference of the others
            stand_in = int(present.nonzero()[0])
            world_to_camera[row, :count][~present] = poses[stand_in]
            intrinsics[row, :count][~present] = K[stand_in]
    return Cameras(world_to_camera, intrinsics), has_camera


def step_points(scene: SceneGeometry | None, pair: MergedCamera = "first") -> Float[Tensor, "t h w 3"]:
    """The 3D point that each token shows, see `token_points`; of two merged frames, by the depth of the first.

    Raises:
        ValueError: a scene without cameras or depth.
    """
    if scene is None or scene.depth is None:
        raise ValueError("a scene without depth where the points that tokens show are needed")
    if pair != "first":
        raise InputError("points are those of the first frame of a pair: leave --model.merged_camera first")
    poses, K, present = (each[::TEMPORAL_PATCH_SIZE] for each in scene.cameras())
    points = token_points(scene.depth[::TEMPORAL_PATCH_SIZE], poses, K)
    return points.where(present[:, None, None, None], torch.nan)


def median_depths(scenes: Sequence[SceneGeometry | None]) -> Float[Tensor, " B"]:
    """Of all that the frames of each scene show, in the unit of the poses.

    Raises:
        InputError: a scene without any depth.
    """
    medians = []
    for scene in scenes:
        depth = None if scene is None or scene.depth is None else scene.depth[scene.depth > 0]
        if depth is None or not len(depth):
            raise InputError("scale: median_depth needs scenes with depth, and one has none: choose another scale")
        medians.append(depth.median())
    return torch.stack(medians)


def _scene_steps(scene: SceneGeometry | None, pair: MergedCamera) -> tuple[Tensor, Tensor, Tensor]:
    scene = scene or SceneGeometry()
    # not unflatten: a sequence of text has no frames
    poses, K, present = (
        each.reshape(len(each) // TEMPORAL_PATCH_SIZE, TEMPORAL_PATCH_SIZE, *each.shape[1:]) for each in scene.cameras()
    )
    wanted = TEMPORAL_PATCH_SIZE - 1 if pair == "last" else 0
    alone = torch.where(present[:, wanted], wanted, TEMPORAL_PATCH_SIZE - 1 - wanted)
    row = torch.arange(len(poses), device=poses.device)
    step_poses, step_K = poses[row, alone], K[row, alone]
    if pair == "mean":
        both = present.all(1)
        step_poses[both] = _half_way(poses[both])
        step_K[both] = K[both].mean(1)
    return step_poses, step_K, present.any(1)


def _half_way(poses: Float[Tensor, "N pair 4 4"]) -> Float[Tensor, "N 4 4"]:
    """Between two rotations the nearest rotation to their sum is the mid-point of the slerp."""
    camera_to_world = invert_se3(poses.double())
    U, _, Vh = torch.linalg.svd(camera_to_world[..., :3, :3].sum(1))
    U = torch.cat((U[..., :2], U[..., 2:] * torch.linalg.det(U @ Vh)[:, None, None].sign()), -1)
    middle = torch.zeros_like(camera_to_world[:, 0])
    middle[..., :3, :3], middle[..., :3, 3], middle[..., 3, 3] = U @ Vh, camera_to_world[..., :3, 3].mean(1), 1.0
    return invert_se3(middle).to(poses.dtype)
