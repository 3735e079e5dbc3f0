"""Cameras of a scene's frames, of its temporal patches, and of whole sequences."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from zoo.cameras import Cameras
from zoo.encodings.reference import balanced_views
from zoo.errors import InputError
from zoo.geometry.base import SceneGeometry
from zoo.poses import invert_se3
from zoo.rays import token_points
from zoo.requirements import CameraUse
from zoo.scenes import SceneInputs, SceneTokens
from zoo.sequence_layout import SequenceLayout, is_contiguous
from zoo.visual_grid import TEMPORAL_PATCH_SIZE

MergedCamera = Literal["first", "last", "mean"]
PatchCameras = tuple[Float[Tensor, "t 4 4"], Float[Tensor, "t 3 3"], Bool[Tensor, " t"]]

# ---- frames to temporal patches -------------------------------------------------------------------------------


def merge_cameras(scene: SceneGeometry, merged_camera: MergedCamera = "first") -> PatchCameras:
    """One camera per temporal patch, from one per frame.

    Args:
        scene: with cameras of an even number of frames.
        merged_camera: the camera of a temporal patch is that of its `first` or `last` frame, or their `mean`: the mean
            of centers and intrinsics, and the midpoint of the rotations. Where one frame has no camera it is the
            other's.

    Returns:
        Poses, intrinsics, and which of them are valid. The first valid camera stands in for the others, since a
        reference view may be chosen among them.

    Raises:
        ValueError: a scene without cameras.
    """
    # not unflatten: a sequence of text has no frames
    poses, K, present = (
        each.reshape(len(each) // TEMPORAL_PATCH_SIZE, TEMPORAL_PATCH_SIZE, *each.shape[1:]) for each in scene.cameras()
    )
    wanted = TEMPORAL_PATCH_SIZE - 1 if merged_camera == "last" else 0
    alone = torch.where(present[:, wanted], wanted, TEMPORAL_PATCH_SIZE - 1 - wanted)
    row = torch.arange(len(poses), device=poses.device)
    patch_poses, patch_K, has_camera = poses[row, alone], K[row, alone], present.any(1)
    if merged_camera == "mean":
        both = present.all(1)
        patch_poses[both] = _midpoint(poses[both])
        patch_K[both] = K[both].mean(1)
    if not has_camera.all() and has_camera.any():
        stand_in = int(has_camera.nonzero()[0])
        known = has_camera[:, None, None]
        patch_poses = torch.where(known, patch_poses, patch_poses[stand_in])
        patch_K = torch.where(known, patch_K, patch_K[stand_in])
    return patch_poses, patch_K, has_camera


def scene_points(scene: SceneGeometry, merged_camera: MergedCamera = "first") -> Float[Tensor, "t h w 3"]:
    """The 3D point of each 2D token, by the depth of the first frame of its temporal patch; NaN where unknown.

    Raises:
        InputError: a scene without depth, or another `merged_camera` than "first".
    """
    if scene.depth is None:
        raise InputError("an encoding by 3D points needs scenes with depth, and one has none")
    if merged_camera != "first":
        raise InputError("points are those of the first frame of a temporal patch: leave --model.merged_camera first")
    poses, K, present = (each[::TEMPORAL_PATCH_SIZE] for each in scene.cameras())
    points = token_points(scene.depth[::TEMPORAL_PATCH_SIZE], poses, K)
    return points.where(present[:, None, None, None], torch.nan)


def median_depth(scene: SceneGeometry) -> Float[Tensor, ""]:
    """The median over all pixels of all frames, in the unit of the poses.

    Raises:
        InputError: a scene without any depth.
    """
    depth = None if scene.depth is None else scene.depth[scene.depth > 0]
    if depth is None or not len(depth):
        raise InputError("scale: median_depth needs scenes with depth, and one has none: choose another scale")
    return depth.median()


def _midpoint(poses: Float[Tensor, "N pair 4 4"]) -> Float[Tensor, "N 4 4"]:
    """The nearest rotation to the sum of two rotations is the midpoint of their slerp."""
    camera_to_world = invert_se3(poses.double())
    U, _, Vh = torch.linalg.svd(camera_to_world[..., :3, :3].sum(1))
    U = torch.cat((U[..., :2], U[..., 2:] * torch.linalg.det(U @ Vh)[:, None, None].sign()), -1)
    middle = torch.zeros_like(camera_to_world[:, 0])
    middle[..., :3, :3], middle[..., :3, 3], middle[..., 3, 3] = U @ Vh, camera_to_world[..., :3, 3].mean(1), 1.0
    return invert_se3(middle).to(poses.dtype)


def add_cameras(
    encoded: SceneTokens, scene: SceneInputs, geometry: SceneGeometry | None, use: CameraUse, merged: MergedCamera
) -> None:
    """Adds one camera per temporal patch to an encoded scene, and what the camera parts use beside it.

    Args:
        encoded: changed in place; left as it is where there are no cameras.
        scene: its inputs.
        geometry: the dataset's, or the geometry encoder's for a scene whose cameras are predicted.
        use: what the camera parts read.
        merged: the camera of two merged frames.
    """
    if scene.cameras is not None and geometry is scene.geometry:
        encoded.world_to_camera, encoded.K_normalized = scene.cameras.world_to_camera[0], scene.cameras.K_normalized[0]
        encoded.has_camera = scene.has_camera
    elif geometry is not None and geometry.knows_cameras:
        encoded.world_to_camera, encoded.K_normalized, encoded.has_camera = merge_cameras(geometry, merged)
    else:
        return
    if geometry is not None and not (scene.cameras is not None and geometry is scene.geometry):
        encoded.points = scene_points(geometry, merged).flatten(0, 2) if use.points else None
        encoded.median_depth = median_depth(geometry) if use.median_depth else None
    if use.balanced_reference:
        encoded.view_features = encoded.tokens.mean(1)


# ---- temporal patches to sequences ----------------------------------------------------------------------------


def stack_cameras(scenes: Sequence[SceneTokens]) -> tuple[Cameras, Bool[Tensor, "B t"] | None]:
    """The cameras of scenes with equally many temporal patches, one sample each; and which are valid, None for all."""
    poses, K, given = zip(*((s.world_to_camera, s.K_normalized, s.has_camera) for s in scenes), strict=True)
    cameras = Cameras(torch.stack(poses), torch.stack(K))
    has_camera = None if any(each is None for each in given) else torch.stack(given)
    present = cameras.used_mask() if has_camera is None else has_camera
    return with_scene_facts(cameras, [[scene] for scene in scenes], present), has_camera


def sequence_cameras(
    rows: Sequence[Sequence[SceneTokens]], layout: SequenceLayout, given: Cameras | None = None
) -> Cameras | None:
    """The cameras of each sequence, with the camera of each token.

    Args:
        rows: the scenes of each sequence, in the order in which they appear.
        layout: of the sequences.
        given: cameras of each sequence, instead of those of the scenes.

    Returns:
        None where there are no cameras.

    Raises:
        InputError: some scenes have cameras and others do not; a video stands between the images of a sequence.
    """
    scenes = [scene for row in rows for scene in row]
    known = [scene.world_to_camera for scene in scenes if scene.world_to_camera is not None]
    if not known and (given is None or (given.index is None and not scenes)):
        return None
    if not is_contiguous(layout.spans):
        raise InputError("a sequence with a video between its images can't have cameras: put the images side by side")
    if given is not None:
        cameras = with_scene_facts(given, rows, given.used_mask())
        return cameras if cameras.index is not None else cameras.with_index(layout.camera_index())
    if len(known) != len(scenes):
        raise InputError("a scene without cameras beside others that have some: give cameras to all of a batch")
    steps = [sum(scene.num_steps for scene in row) for row in rows]
    like = known[0]
    poses = torch.eye(4, dtype=like.dtype, device=like.device).repeat(len(rows), max(steps), 1, 1)
    K = torch.eye(3, dtype=like.dtype, device=like.device).repeat(len(rows), max(steps), 1, 1)
    present = torch.zeros(len(rows), max(steps), dtype=torch.bool, device=like.device)
    for i, row in enumerate(rows):
        if row:
            poses[i, : steps[i]] = torch.cat([scene.world_to_camera for scene in row])  # type: ignore[misc]
            K[i, : steps[i]] = torch.cat([scene.K_normalized for scene in row])  # type: ignore[misc]
            present[i, : steps[i]] = torch.cat([scene.camera_mask for scene in row])
    return with_scene_facts(Cameras(poses, K), rows, present).with_index(layout.camera_index(present))


def with_scene_facts(cameras: Cameras, rows: Sequence[Sequence[SceneTokens]], present: Bool[Tensor, "B C"]) -> Cameras:
    """The cameras with the balanced reference view and the median depth of each row's scenes, where those are known."""
    scenes = [scene for row in rows for scene in row]
    if any(scene.view_features is not None for scene in scenes):
        features = [scene.view_features for scene in scenes if scene.view_features is not None]
        samples = [i for i, row in enumerate(rows) for _ in row]
        steps = [len(feature) for feature in features]
        cameras = cameras.with_reference(balanced_views(features, steps, samples, present))
    if any(scene.median_depth is not None for scene in scenes):
        depth = torch.ones(len(rows), device=cameras.world_to_camera.device)
        for i, row in enumerate(rows):
            for scene in row:
                if scene.median_depth is not None:
                    depth[i] = scene.median_depth
        cameras = cameras.with_median_depth(depth)
    return cameras
