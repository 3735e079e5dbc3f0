"""Augmentations of training scenes: other lenses, whose intrinsics and depth stay correct, and errors of poses."""

from __future__ import annotations

from abc import ABC, abstractmethod
from bisect import bisect_right
from collections.abc import Sequence
from copy import copy
from dataclasses import replace

import torch
from jaxtyping import Float64, UInt8
from torch import Tensor
from torch.nn import functional as F

from zoo.cameras.poses import invert_se3, rigid_matrix, so3_exp
from zoo.cameras.scene_geometry import Window
from zoo.configuration import Configurable
from zoo.errors import InputError
from zoo.sequences.layout import TEMPORAL_PATCH_SIZE
from zoo.sequences.loaded_scene import LoadedScene

Views = list[list[int]]  # the frames of each view, see `frames_of_views`


class Augmentation(Configurable, ABC):
    """Change the frames and the geometry of a training scene. Its questions stay the same.

    An augmentation that states wrong cameras keeps the true ones in `LoadedScene.true_geometry`, for objectives.

    Attributes:
        has_camera_errors: Whether it states wrong cameras.
    """

    has_camera_errors: bool = False

    @abstractmethod
    def __call__(self, scene: LoadedScene) -> LoadedScene:
        """Return the changed scene.

        Args:
            scene: A scene without an error. Its `draw` seeds the random numbers.
        """


class RandomFocalLength(Augmentation):
    """Lengthen the focal length by a random factor and move the principal point at random.

    A window, the same in all frames of a scene, is enlarged to the size of the frames. Intrinsics and depth change with
    it and stay correct. Poses and lengths are unchanged.

    Args:
        longest: Largest factor. The logarithm of the factor is uniform from 0 to log(longest).

    Raises:
        InputError: `longest` is not above 1.
    """

    def __init__(self, longest: float = 1.5) -> None:
        if not longest > 1:
            raise InputError(f"--data.augmentation.longest {longest}: a factor above 1")
        self.longest = longest

    def __call__(self, scene: LoadedScene) -> LoadedScene:
        factor, *place = torch.rand(3, generator=torch.Generator().manual_seed(scene.draw)).tolist()
        return enlarged(scene, self.longest**factor, (place[0], place[1]))


class RandomCameraErrors(Augmentation):
    """Turn and move the camera of each view at random, and remove cameras, anew for each sample.

    The errors are those of `NoisyCameras` and `MissingCameras` in a test. The angle, the distance and the number of
    missing cameras of a sample are uniform from 0 to their largest values. Scenes without cameras are unchanged.
    Objectives learn the true cameras.

    Args:
        degrees: Largest angle by which a camera turns about its center.
        translation: Largest distance by which a camera moves, relative to the mean distance between the cameras.
        missing: Largest share of the views that lose their camera. One view keeps its camera.

    Raises:
        InputError: An error is negative, all are zero, or more than all views lose their camera.
    """

    has_camera_errors = True

    def __init__(self, degrees: float = 0.0, translation: float = 0.0, missing: float = 0.0) -> None:
        if not 0 <= missing <= 1:
            raise InputError(f"--data.augmentation.missing {missing}: a share of the views, from 0 to 1")
        if not missing or min(degrees, translation) < 0:
            check_errors("--data.augmentation", degrees, translation)
        self.degrees, self.translation, self.missing = degrees, translation, missing

    def __call__(self, scene: LoadedScene) -> LoadedScene:
        if scene.geometry is None or not scene.geometry.has_cameras:
            return scene
        draws = torch.Generator().manual_seed(scene.draw)
        turn, move = torch.rand(2, generator=draws).tolist()
        poses = told_poses(scene)
        views = frames_of_views(range(len(poses)), len(poses))
        poses = with_errors(poses, views, turn * self.degrees, move * self.translation, draws)
        if self.missing:
            known = views_with_camera(poses, views)
            most = min(int(self.missing * len(known)), len(known) - 1)
            poses = without_cameras(poses, known, int(torch.randint(most + 1, (), generator=draws)), draws)
        return with_poses(scene, poses)


def check_errors(option: str, degrees: float, translation: float) -> None:
    """Raise an InputError unless some error is positive and none is negative."""
    if min(degrees, translation) < 0 or degrees == translation == 0:
        raise InputError(f"{option}: degrees {degrees} and translation {translation}, give a positive number to one")


def told_poses(scene: LoadedScene) -> Float64[Tensor, "S 4 4"]:
    """Return the world-to-camera poses that a scene states, NaN for a frame without a camera."""
    assert scene.geometry is not None
    poses, _, has_camera = scene.geometry.cameras()
    return poses.double().masked_fill(~has_camera[:, None, None], torch.nan)


def with_poses(scene: LoadedScene, world_to_camera: Float64[Tensor, "S 4 4"]) -> LoadedScene:
    """Return a scene that states wrong poses, the inverse of `told_poses`. Its intrinsics and depth stay correct."""
    assert scene.geometry is not None
    geometry, (poses, _, _) = copy(scene.geometry), scene.geometry.cameras()
    geometry.has_camera = world_to_camera.isfinite().all((1, 2))
    identity = torch.eye(4, dtype=torch.float64)
    known = torch.where(geometry.has_camera[:, None, None], world_to_camera, identity)
    geometry.world_to_camera = known.to(poses.dtype)
    return replace(scene, geometry=geometry, true_geometry=scene.target_geometry)


def frames_of_views(shown: Sequence[int], num_frames: int) -> Views:
    """Return the frames of a video by the view to which they belong.

    A view has the two frames that are shown together, which come first, and all frames from there to the next view.

    Args:
        shown: The frames that are shown, two per view, in the order of the video.
        num_frames: Number of frames of the video.

    Example:
        >>> frames_of_views([0, 2, 4, 6], 8)
        [[0, 2, 1, 3], [4, 6, 5, 7]]
    """
    views = [list(shown[i : i + TEMPORAL_PATCH_SIZE]) for i in range(0, len(shown), TEMPORAL_PATCH_SIZE)]
    starts = [view[0] for view in views]
    for frame in sorted(set(range(num_frames)).difference(shown)):
        views[max(bisect_right(starts, frame) - 1, 0)].append(frame)
    return views


def without_cameras(
    world_to_camera: Float64[Tensor, "S 4 4"], views: Views, count: int, draws: torch.Generator
) -> Float64[Tensor, "S 4 4"]:
    """Return the poses with NaN in some views, drawn at random.

    From equal generators, a larger number removes the same cameras and more.

    Args:
        world_to_camera: Poses, NaN for a frame without a camera.
        views: The frames of each view that may lose its camera.
        count: Number of views that lose their camera.
        draws: Random generator.
    """
    poses = world_to_camera.clone()
    for drawn in torch.randperm(len(views), generator=draws)[:count].tolist():
        poses[views[drawn]] = torch.nan
    return poses


def views_with_camera(world_to_camera: Float64[Tensor, "S 4 4"], views: Views) -> Views:
    """Return the views of which some frame has a camera."""
    is_known = world_to_camera.isfinite().all((1, 2))
    return [frames for frames in views if is_known[frames].any()]


def with_errors(
    world_to_camera: Float64[Tensor, "S 4 4"],
    views: Views,
    degrees: float,
    translation: float,
    draws: torch.Generator,
    *,
    accumulate: bool = False,
) -> Float64[Tensor, "S 4 4"]:
    """Turn each view's camera about its center and move it, about random axes and in random directions.

    The frames of a view have the same error.

    Args:
        world_to_camera: True poses, NaN for a frame without a camera.
        views: The frames of each view, see `frames_of_views`.
        degrees: Angle of each turn.
        translation: Length of each move, relative to the mean distance between the cameras of two views.
        draws: Random generator.
        accumulate: The errors are those of the steps from one view to the next, so that they add up as in odometry. The
            first view with a camera is correct.
    """
    axes, directions = F.normalize(torch.randn(2, len(views), 3, generator=draws, dtype=torch.float64), dim=-1)
    of_views = [world_to_camera[frames] for frames in views]
    own = [poses[poses.isfinite().all((1, 2))][:1] for poses in of_views]  # one camera of each view that has some
    centers = invert_se3(torch.cat(own))[:, :3, 3]
    length = torch.pdist(centers).mean() if len(centers) > 1 else 0.0
    errors = rigid_matrix(so3_exp(torch.pi / 180 * degrees * axes), translation * length * directions)
    wrong = world_to_camera.clone()
    drift: Tensor | None = None  # of the world, so far
    for error, camera, frames in zip(errors, own, views, strict=True):
        if accumulate and len(camera):
            eye = torch.eye(4, dtype=torch.float64)
            drift = eye if drift is None else invert_se3(camera[0]) @ error @ camera[0] @ drift
        if not accumulate or drift is not None:
            wrong[frames] = error @ world_to_camera[frames] if drift is None else world_to_camera[frames] @ drift
    return wrong


def enlarged(scene: LoadedScene, factor: float, place: tuple[float, float] = (0.5, 0.5)) -> LoadedScene:
    """Enlarge a window of a scene's frames to their size, as a lens of longer focal length would show it.

    If the geometry encoder has frames of its own, they are enlarged about the same point of the pictures.

    Args:
        scene: A scene without an error.
        factor: Factor of the focal length, at least 1.
        place: Position of the window, from 0 (left, top) to 1 (right, bottom).
    """
    assert scene.frames is not None
    size = (scene.frames.shape[-2], scene.frames.shape[-1])
    window = _window(size, factor, place)
    others = scene.geometry_frames
    if others is not None:
        if (seen := scene.vision_window) is not None:  # the same point, relative to the geometry encoder's frames
            across, down = seen.left + place[0] * seen.columns, seen.top + place[1] * seen.rows
            place = (across / seen.width, down / seen.height)
        others = _enlarged(others, _window((others.shape[-2], others.shape[-1]), factor, place))
    shown = replace(scene, frames=_enlarged(scene.frames, window), geometry_frames=others)
    return shown.change_geometry(lambda geometry: window.crop(geometry, size))


def _window(size: tuple[int, int], factor: float, place: tuple[float, float]) -> Window:
    """Return the window that is enlarged in frames of this size."""
    rows, columns = (max(1, round(side / factor)) for side in size)
    left, top = round(place[0] * (size[1] - columns)), round(place[1] * (size[0] - rows))
    return Window(size[0], size[1], top, left, rows, columns)


def _enlarged(frames: UInt8[Tensor, "T 3 H W"], window: Window) -> UInt8[Tensor, "T 3 H W"]:
    """Crop a window of the frames and resize it to the size of the frames."""
    shown = frames[(..., *window.place)].float()
    wide = F.interpolate(shown, (window.height, window.width), mode="bilinear", antialias=True)
    return wide.round().clamp(0, 255).to(frames.dtype)
