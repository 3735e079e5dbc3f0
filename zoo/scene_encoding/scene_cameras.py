"""Cameras of scenes as the camera parts read them, and those of whole sequences; nothing here waits for a GPU."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from zoo.backbones.base import VisualTokens
from zoo.cameras import Cameras
from zoo.cameras.patch_cameras import MergedCamera, PatchCameras, merge_cameras, stack_cameras
from zoo.cameras.rays import patch_depth, token_points
from zoo.cameras.scene_geometry import SceneGeometry
from zoo.encodings.balanced_view import balanced_views
from zoo.errors import InputError
from zoo.requirements import CameraUse
from zoo.scene_encoding.encoded_scene import EncodedScene, SceneCameras, SceneTargets
from zoo.sequences.batch import Sequences
from zoo.sequences.deferred_positions import valid_index
from zoo.sequences.scene_inputs import SceneInputs
from zoo.sequences.visual_grid import TEMPORAL_PATCH_SIZE

# ---- of a scene -----------------------------------------------------------------------------------------------


def scene_cameras(
    scene: SceneInputs,
    predicted: SceneGeometry | None,
    visual: VisualTokens,
    use: CameraUse,
    merged: MergedCamera,
) -> SceneCameras | None:
    """Return the cameras of a scene, with the depth and features that camera parts read; None without cameras.

    Args:
        scene: Its own cameras, the dataset's.
        predicted: The geometry encoder's, if they are read instead.
        visual: Its 2D tokens.
        use: What the camera parts read.
        merged: The camera of two merged frames.

    Raises:
        InputError: A part reads depth, and the scene has none.
    """
    geometry = scene.geometry if predicted is None else predicted
    patches = scene.cameras if predicted is None else predicted_patches(predicted, merged)
    if patches is None or not use.cameras:
        return None
    if (count := len(patches.world_to_camera)) != scene.num_steps:
        raise InputError(f"{count} cameras for {scene.num_steps} temporal patches: one for each, not per frame")
    return SceneCameras(
        patches,
        points=scene_points(geometry, scene.token_grid[1], merged).flatten(0, 2) if use.points else None,
        depth=known_depth(geometry) if use.median_depth else None,
        view_features=visual.tokens.mean(1) if use.balanced_reference else None,
    )


def predicted_patches(geometry: SceneGeometry, merged: MergedCamera) -> PatchCameras | None:
    """Merge the cameras that an encoder predicts; None if it predicts none."""
    return merge_cameras(geometry, merged) if geometry.has_cameras else None


def scene_targets(
    scene: SceneInputs,
    predicted: SceneGeometry | None,
    targets: Sequence[str],
    pseudo_labels: Sequence[str],
    merged: MergedCamera,
) -> SceneTargets:
    """Return what objectives learn to predict of a scene.

    Args:
        scene: With the dataset's geometry.
        predicted: The geometry encoder's, where the scene is encoded with its cameras.
        targets: What objectives learn to predict.
        pseudo_labels: Those of them that the encoder gives, in training.
        merged: The camera of two merged frames.
    """
    cameras = depth = None
    if "cameras" in targets and scene.has_true_cameras:
        is_pseudo = predicted is not None and "cameras" in pseudo_labels
        cameras = predicted_patches(predicted, merged) if is_pseudo and predicted else scene.cameras
    if "depth" in targets:
        geometry = predicted if predicted is not None and "depth" in pseudo_labels else scene.geometry
        depth = None if geometry is None else token_depth(geometry, scene.token_grid[1])
    return SceneTargets(cameras, depth, predicted is None or "depth" in pseudo_labels)


def scene_points(
    scene: SceneGeometry | None, rows: int, merged_camera: MergedCamera = "first"
) -> Float[Tensor, "t h w 3"]:
    """Compute the 3D point of each 2D token, by the depth of the first frame of its patch; NaN where unknown.

    Args:
        scene: With depth.
        rows: Of 2D tokens in a view.
        merged_camera: See `merge_cameras`.

    Raises:
        InputError: A scene without depth, or another `merged_camera` than "first".
    """
    if scene is None or scene.depth is None:
        raise InputError("an encoding by 3D points needs scenes with depth, and one has none")
    if merged_camera != "first":
        raise InputError("points are those of the first frame of a temporal patch: leave --model.merged_camera first")
    poses, K, present = (each[::TEMPORAL_PATCH_SIZE] for each in scene.cameras())
    points = token_points(scene.depth[::TEMPORAL_PATCH_SIZE], poses, K, scene.depth.shape[1] // rows)
    return points.where(present[:, None, None, None], torch.nan)


def token_depth(scene: SceneGeometry, rows: int) -> Float[Tensor, "t n"] | None:
    """Compute the median depth of each 2D token over the frames that it merges; 0 where unknown, None without depth.

    Args:
        scene: Of an even number of frames.
        rows: Of 2D tokens in a view.
    """
    if scene.depth is None:
        return None
    return patch_depth(scene.depth, scene.depth.shape[1] // rows, TEMPORAL_PATCH_SIZE).flatten(1)


def known_depth(scene: SceneGeometry | None) -> Float[Tensor, " pixels"]:
    """Return the depth of all pixels of all frames, in the unit of the poses; NaN where unknown.

    Raises:
        InputError: A scene without depth.
    """
    if scene is None or scene.depth is None:
        raise InputError("scale: median_depth needs scenes with depth, and one has none: choose another scale")
    depth = scene.depth.flatten()
    return torch.where(depth > 0, depth, torch.nan)


# ---- of whole sequences ---------------------------------------------------------------------------------------


def sequence_cameras(rows: Sequence[Sequence[EncodedScene]], sequences: Sequences) -> Cameras | None:
    """Return the cameras of each sequence, with the camera of each token; None if there are none.

    Args:
        rows: The scenes of each sequence, in the order in which they appear.
        sequences: Of token ids.

    Raises:
        InputError: Some scenes have cameras and others do not.
    """
    known = [[scene.cameras for scene in row if scene.cameras is not None] for row in rows]
    if (given := sequences.cameras) is not None:
        if given.index is None and not any(rows):  # text alone
            return None
        if given.index is None:
            given = given.with_token_runs(sequences.camera_index, sequences.camera_runs)
        return add_scene_statistics(given, known, given.used_mask())
    if not any(known):
        return None
    if any(len(own) < len(row) for own, row in zip(known, rows, strict=True)):
        raise InputError("a scene without cameras beside others that have some: give cameras to all of a batch")
    poses, K, present = stack_cameras([[scene.patches for scene in row] for row in known])
    index = valid_index(sequences.camera_index, present)
    return add_scene_statistics(Cameras.trusted(poses, K, index, sequences.camera_runs), known, present)


def add_scene_statistics(
    cameras: Cameras, rows: Sequence[Sequence[SceneCameras]], has_camera: Bool[Tensor, "B C"]
) -> Cameras:
    """Add the balanced reference view and the median depth of each row to cameras, where those are known.

    Both are of all scenes of a row, as the other reference views and scales are: its cameras share one unit.

    Args:
        cameras: Of each row.
        rows: The scenes of each row.
        has_camera: The valid cameras.
    """
    features = [[scene.view_features for scene in row if scene.view_features is not None] for row in rows]
    if any(features):
        cameras = cameras.with_reference(balanced_views(features, has_camera))
    depths = [[scene.depth for scene in row if scene.depth is not None] for row in rows]
    if any(depths):
        one = torch.ones(1, device=has_camera.device)
        medians = [torch.cat(own or [one]).nanmedian().double() for own in depths]
        cameras = cameras.with_median_depth(torch.stack(medians))
    return cameras
