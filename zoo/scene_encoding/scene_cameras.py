"""Cameras of a scene's frames, of its temporal patches, and of whole sequences."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from zoo.cameras import Cameras
from zoo.cameras.poses import invert_se3
from zoo.cameras.rays import patch_depth, token_points
from zoo.encodings.balanced_view import balanced_views
from zoo.errors import InputError
from zoo.geometry.base import SceneGeometry
from zoo.requirements import CameraUse
from zoo.scenes import PatchCameras, SceneInputs, SceneTokens
from zoo.sequences.layout import SequenceLayout, is_contiguous
from zoo.sequences.visual_grid import TEMPORAL_PATCH_SIZE

MergedCamera = Literal["first", "last", "mean"]

# ---- frames to temporal patches -------------------------------------------------------------------------------


def merge_cameras(scene: SceneGeometry, merged_camera: MergedCamera = "first") -> PatchCameras:
    """One camera per temporal patch, from one per frame.

    Args:
        scene: with cameras of an even number of frames.
        merged_camera: the camera of a temporal patch is that of its `first` or `last` frame, or their `mean`: the mean
            of centers and intrinsics, and the midpoint of the rotations. Where one frame has no camera it is the
            other's.

    Returns:
        The first valid camera stands in for those that are not, since a reference view may be chosen among them.

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
    return PatchCameras(patch_poses, patch_K, has_camera)


def scene_points(scene: SceneGeometry, rows: int, merged_camera: MergedCamera = "first") -> Float[Tensor, "t h w 3"]:
    """The 3D point of each 2D token, by the depth of the first frame of its temporal patch; NaN where unknown.

    Args:
        scene: with depth.
        rows: of 2D tokens in a view.
        merged_camera: see `merge_cameras`.

    Raises:
        InputError: a scene without depth, or another `merged_camera` than "first".
    """
    if scene.depth is None:
        raise InputError("an encoding by 3D points needs scenes with depth, and one has none")
    if merged_camera != "first":
        raise InputError("points are those of the first frame of a temporal patch: leave --model.merged_camera first")
    poses, K, present = (each[::TEMPORAL_PATCH_SIZE] for each in scene.cameras())
    points = token_points(scene.depth[::TEMPORAL_PATCH_SIZE], poses, K, scene.depth.shape[1] // rows)
    return points.where(present[:, None, None, None], torch.nan)


def token_depth(scene: SceneGeometry, rows: int) -> Float[Tensor, "t n"] | None:
    """The median depth of each 2D token over the frames that it merges; 0 where unknown, None without depth.

    Args:
        scene: of an even number of frames.
        rows: of 2D tokens in a view.
    """
    if scene.depth is None:
        return None
    return patch_depth(scene.depth, scene.depth.shape[1] // rows, TEMPORAL_PATCH_SIZE).flatten(1)


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


def patch_cameras(scene: SceneInputs, geometry: SceneGeometry | None, merged: MergedCamera) -> PatchCameras | None:
    """One camera per temporal patch; None without cameras.

    Args:
        scene: its own cameras per temporal patch take precedence over those of its `geometry`.
        geometry: the dataset's, or the geometry encoder's.
        merged: the camera of two merged frames.
    """
    if scene.cameras is not None and geometry is scene.geometry:
        poses, K = scene.cameras.world_to_camera[0], scene.cameras.K_normalized[0]
        if len(poses) != scene.num_steps:
            raise InputError(
                f"{len(poses)} cameras for {scene.num_steps} temporal patches: one for each, not per frame"
            )
        every = torch.ones(len(poses), dtype=torch.bool, device=poses.device)
        return PatchCameras(poses, K, every if scene.has_camera is None else scene.has_camera)
    return merge_cameras(geometry, merged) if geometry is not None and geometry.knows_cameras else None


def add_cameras(encoded: SceneTokens, geometry: SceneGeometry | None, use: CameraUse, merged: MergedCamera) -> None:
    """Adds one camera per temporal patch to an encoded scene, and the depth and features that the camera parts read.

    Args:
        encoded: changed in place; unchanged if there are no cameras.
        geometry: the dataset's, or the geometry encoder's for a scene whose cameras are predicted.
        use: what the camera parts read.
        merged: the camera of two merged frames.
    """
    scene = encoded.scene
    encoded.cameras = patch_cameras(scene, geometry, merged)
    if encoded.cameras is None:
        return
    if geometry is not None and (scene.cameras is None or geometry is not scene.geometry):
        encoded.points = scene_points(geometry, scene.token_rows, merged).flatten(0, 2) if use.points else None
        encoded.median_depth = median_depth(geometry) if use.median_depth else None
    if use.balanced_reference:
        encoded.view_features = encoded.tokens.mean(1)


# ---- temporal patches to sequences ----------------------------------------------------------------------------


def stack_cameras(rows: Sequence[Sequence[SceneTokens]]) -> tuple[Cameras, Bool[Tensor, "B C"]]:
    """The cameras of each row's scenes one after another, and which of them are valid; identities fill shorter rows."""
    joined = [[torch.cat(each) for each in zip(*(scene.cameras for scene in row), strict=True)] for row in rows]
    like = next(cameras[0] for cameras in joined if cameras)
    steps = [len(cameras[0]) if cameras else 0 for cameras in joined]
    poses, K = (torch.eye(n, dtype=like.dtype, device=like.device).repeat(len(rows), max(steps), 1, 1) for n in (4, 3))
    present = torch.zeros(len(rows), max(steps), dtype=torch.bool, device=like.device)
    for i, cameras in enumerate(joined):
        if cameras:
            poses[i, : steps[i]], K[i, : steps[i]], present[i, : steps[i]] = cameras
    return with_scene_facts(Cameras(poses, K), rows, present), present


def sequence_cameras(
    rows: Sequence[Sequence[SceneTokens]], layout: SequenceLayout, given: Cameras | None = None
) -> Cameras | None:
    """The cameras of each sequence, with the camera of each token.

    Args:
        rows: the scenes of each sequence, in the order in which they appear.
        layout: of the sequences.
        given: cameras of each sequence, instead of those of the scenes.

    Returns:
        None if there are no cameras.

    Raises:
        InputError: some scenes have cameras and others do not; a video stands between the images of a sequence.
    """
    known = [scene.cameras is not None for row in rows for scene in row]
    if not any(known) and (given is None or (given.index is None and not known)):
        return None
    if not is_contiguous(layout.media):
        raise InputError("a sequence with a video between its images can't have cameras: put the images side by side")
    if given is not None:
        cameras = with_scene_facts(given, rows, given.used_mask())
        return cameras if cameras.index is not None else cameras.with_index(layout.camera_index())
    if not all(known):
        raise InputError("a scene without cameras beside others that have some: give cameras to all of a batch")
    cameras, present = stack_cameras(rows)
    return cameras.with_index(layout.camera_index(present))


def with_scene_facts(cameras: Cameras, rows: Sequence[Sequence[SceneTokens]], present: Bool[Tensor, "B C"]) -> Cameras:
    """The cameras with the balanced reference view and the median depth of each row's scenes, where those are known."""
    pairs = [(i, scene) for i, row in enumerate(rows) for scene in row]
    features = [(i, scene.view_features) for i, scene in pairs if scene.view_features is not None]
    if features:
        samples, views = zip(*features, strict=True)
        cameras = cameras.with_reference(balanced_views(views, [len(each) for each in views], samples, present))
    depths = {i: scene.median_depth for i, scene in pairs if scene.median_depth is not None}
    if depths:
        depth = torch.ones(len(rows), device=cameras.world_to_camera.device)
        for i, median in depths.items():
            depth[i] = median
        cameras = cameras.with_median_depth(depth)
    return cameras
