"""Cameras of temporal patches: one for the frames that are merged into one token."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import reduce
from typing import Literal, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from zoo.cameras.poses import invert_se3, rigid_matrix, rotation_parts
from zoo.cameras.scene_geometry import SceneGeometry

MergedCamera = Literal["first", "last", "mean"]
FRAMES = 2  # in a temporal patch
HALF_TURN = 1e-12  # least cosine squared of half the angle; between opposite rotations no midpoint is defined


class PatchCameras(NamedTuple):
    """One camera per temporal patch of a scene.

    Attributes:
        world_to_camera: Poses.
        K_normalized: Intrinsics, see `zoo.cameras.normalize_intrinsics`.
        has_camera: The temporal patches whose camera is valid.
        is_complete: Whether the host knows that all of them are valid. False where it would have to wait to find out.
    """

    world_to_camera: Float[Tensor, "t 4 4"]
    K_normalized: Float[Tensor, "t 3 3"]
    has_camera: Bool[Tensor, " t"]
    is_complete: bool = False

    def map(self, change: Callable[[Tensor], Tensor]) -> PatchCameras:
        """Change each tensor, for instance moves it to a device."""
        return PatchCameras(change(self[0]), change(self[1]), change(self[2]), self.is_complete)


def merge_cameras(scene: SceneGeometry, merged_camera: MergedCamera = "first") -> PatchCameras:
    """Merge the cameras of each two frames into one per temporal patch, without waiting for a GPU.

    Args:
        scene: With cameras of an even number of frames.
        merged_camera: The camera of a temporal patch is that of its `first` or `last` frame, or their `mean`: the mean
            of centers and intrinsics, and the midpoint of the rotations. Where one frame has no camera it is the
            other's.

    Returns:
        The first valid camera stands in for those that are not, since a reference view may be chosen among them.

    Raises:
        ValueError: A scene without cameras.
    """
    # not unflatten: a sequence of text has no frames
    poses, K, present = (each.reshape(len(each) // FRAMES, FRAMES, *each.shape[1:]) for each in scene.cameras())
    wanted = FRAMES - 1 if merged_camera == "last" else 0
    alone = torch.where(present[:, wanted], wanted, FRAMES - 1 - wanted)
    row = torch.arange(len(poses), device=poses.device)
    patch_poses, patch_K, has_camera = poses[row, alone], K[row, alone], present.any(1)
    if merged_camera == "mean":
        both = present.all(1)[:, None, None]
        patch_poses = torch.where(both, _midpoint(poses), patch_poses)
        patch_K = torch.where(both, K.mean(1), patch_K)
    if len(poses):
        stand_in = has_camera.int().argmax(0, keepdim=True)  # itself where no camera is valid
        known = has_camera[:, None, None]
        patch_poses = torch.where(known, patch_poses, patch_poses[stand_in])
        patch_K = torch.where(known, patch_K, patch_K[stand_in])
    return PatchCameras(patch_poses, patch_K, has_camera)


def stack_cameras(
    rows: Sequence[Sequence[PatchCameras]],
) -> tuple[Float[Tensor, "B C 4 4"], Float[Tensor, "B C 3 3"], Bool[Tensor, "B C"]]:
    """Concatenate the cameras of each row's scenes; identities fill shorter rows.

    Args:
        rows: The cameras of the scenes of each row; at least one.

    Returns:
        Poses and intrinsics in the widest dtype of all, and a mask of the valid ones.
    """
    some = next(scene for row in rows for scene in row)
    empty = some.map(lambda tensor: tensor[:0])
    joined = [[torch.cat(parts) for parts in zip(*(each[:3] for each in (empty, *row)), strict=True)] for row in rows]
    dtype = reduce(torch.promote_types, (poses.dtype for poses, _, _ in joined))
    longest = max(len(poses) for poses, _, _ in joined)
    like = some.world_to_camera
    filled = [torch.eye(n, dtype=dtype, device=like.device).repeat(len(rows), longest, 1, 1) for n in (4, 3)]
    filled.append(torch.zeros(len(rows), longest, dtype=torch.bool, device=like.device))
    for i, row in enumerate(joined):
        for target, values in zip(filled, row, strict=True):
            target[i, : len(values)] = values
    return filled[0], filled[1], filled[2]


def _midpoint(poses: Float[Tensor, "N pair 4 4"]) -> Float[Tensor, "N 4 4"]:
    """Compute the midpoint of the slerp of two rotations, in closed form, and the mean center."""
    camera_to_world = invert_se3(poses.double())
    first, second = camera_to_world[:, 0, :3, :3], camera_to_world[:, 1, :3, :3]
    cosine, sine_axis = rotation_parts(first.mT @ second)
    half_cosine = ((1 + cosine) / 2).clamp(min=HALF_TURN).sqrt()[:, None]
    half = sine_axis / (2 * half_cosine)  # sin(angle / 2) times the axis
    zero = torch.zeros_like(half[:, 0])
    x, y, z = half.unbind(-1)
    skew = torch.stack((zero, -z, y, z, zero, -x, -y, x, zero), -1).unflatten(-1, (3, 3))
    identity = torch.eye(3, dtype=skew.dtype, device=skew.device)
    rotation = first @ (identity + skew + skew @ skew / (1 + half_cosine[..., None]))  # Rodrigues' formula
    return invert_se3(rigid_matrix(rotation, camera_to_world[..., :3, 3].mean(1))).to(poses.dtype)
