"""From one camera per frame to one per temporal patch, as the vision tower merges two frames into one token."""

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
    """The cameras of the temporal patches of several scenes, padded to the longest.

    Args:
        scenes: each with one camera per frame and an even number of frames; None is an error like a scene without.
        pair: the camera of a temporal patch is that of its first or last frame, or the mean of both: of centers,
            intrinsics, and rotations (the midpoint of the slerp). If one frame has no camera it is that of the other.

    Returns:
        The cameras, and a mask of the valid ones.

    Raises:
        ValueError: A scene without cameras.
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
            # a missing camera may become the reference of the others, so its stand-in must be a valid one
            stand_in = int(present.nonzero()[0])
            world_to_camera[row, :count][~present] = poses[stand_in]
            intrinsics[row, :count][~present] = K[stand_in]
    return Cameras(world_to_camera, intrinsics), has_camera


def step_points(scene: SceneGeometry | None, pair: MergedCamera = "first") -> Float[Tensor, "t h w 3"]:
    """The 3D point of each token, from the first frame of its temporal patch; see `zoo.rays.token_points`.

    Raises:
        ValueError: A scene without cameras or depth.
        InputError: The cameras are not those of the first frames.
    """
    if scene is None or scene.depth is None:
        raise ValueError("a scene without depth where the points that tokens show are needed")
    if pair != "first":
        raise InputError("points are those of the first frame of a temporal patch: set --model.merged_camera first")
    poses, K, present = (each[::TEMPORAL_PATCH_SIZE] for each in scene.cameras())
    points = token_points(scene.depth[::TEMPORAL_PATCH_SIZE], poses, K)
    return points.where(present[:, None, None, None], torch.nan)


def median_depths(scenes: Sequence[SceneGeometry | None]) -> Float[Tensor, " B"]:
    """The median depth over all frames of each scene, in the unit of the poses.

    Raises:
        InputError: A scene without any depth.
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
    """The mean of two poses; the rotation nearest to the sum of two is the midpoint of their slerp."""
    camera_to_world = invert_se3(poses.double())
    U, _, Vh = torch.linalg.svd(camera_to_world[..., :3, :3].sum(1))
    U = torch.cat((U[..., :2], U[..., 2:] * torch.linalg.det(U @ Vh)[:, None, None].sign()), -1)
    middle = torch.zeros_like(camera_to_world[:, 0])
    middle[..., :3, :3], middle[..., :3, 3], middle[..., 3, 3] = U @ Vh, camera_to_world[..., :3, 3].mean(1), 1.0
    return invert_se3(middle).to(poses.dtype)
