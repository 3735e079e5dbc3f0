"""Perturbations of a test. The loss in score shows what a trained model relies on.

    python main.py test --data.perturbation OtherCameras
    python main.py test --data.perturbation WrongFocalLength --data.perturbation.relative_error 0.05
    python main.py test --data.perturbation NoisyCameras --data.perturbation.degrees 10

Nothing is trained. The results of a perturbed test are written to a folder inside the run's folder.
"""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from copy import copy
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import Dataset

from datamodules.augmentations import (
    Views,
    check_errors,
    enlarged,
    frames_of_views,
    told_poses,
    views_with_camera,
    with_errors,
    with_poses,
    without_cameras,
)
from datamodules.dataset import SceneDataset, format_scene_error
from datamodules.depth import resize_depth
from datamodules.sources.base import ChangePoses, Poses
from zoo.cameras.poses import invert_se3, rigid_matrix
from zoo.cameras.scene_geometry import SceneGeometry
from zoo.configuration import Configurable
from zoo.errors import InputError
from zoo.sequences.layout import TEMPORAL_PATCH_SIZE
from zoo.sequences.loaded_scene import LoadedScene


class Perturbation(Configurable, ABC):
    """Change the video, cameras or 3D tokens of a scene, but not its questions. Subclasses define `__call__`.

    Errors of an objective's predictions are measured against the true cameras, `LoadedScene.true_geometry`.

    Attributes:
        requires_cameras: Whether the perturbation only affects scenes with cameras.
    """

    requires_cameras: bool = False

    @abstractmethod
    def __call__(self, scene: LoadedScene, read_other: Callable[[], LoadedScene]) -> LoadedScene:
        """Return the perturbed scene.

        Args:
            scene: A scene without an error.
            read_other: Reads another scene of the test. The scene has cameras if `requires_cameras`.

        Raises:
            InputError: There is no other scene.
        """


class OtherCameras(Perturbation):
    """Use the cameras of another scene. Scenes without cameras are unchanged."""

    requires_cameras = True

    def __call__(self, scene: LoadedScene, read_other: Callable[[], LoadedScene]) -> LoadedScene:
        if scene.geometry is None or not scene.geometry.has_cameras:
            return scene
        other = read_other()
        assert other.geometry is not None
        poses, K, has_camera = other.geometry[_repeated(len(other.frame_indices or ()), scene)].cameras()
        geometry = copy(scene.geometry)
        geometry.world_to_camera, geometry.K_normalized, geometry.has_camera = poses, K, has_camera
        return replace(scene, geometry=geometry, true_geometry=scene.target_geometry)


class WrongFocalLength(Perturbation):
    """Multiply the focal lengths by a wrong factor.

    Args:
        relative_error: Error relative to the focal length. 0.05 is 5 % too long.
    """

    requires_cameras = True

    def __init__(self, relative_error: float = 0.05) -> None:
        if not relative_error > -1:
            raise InputError(
                f"--data.perturbation.relative_error {relative_error}: a share above -1, of the focal length"
            )
        self.relative_error = relative_error

    def __call__(self, scene: LoadedScene, read_other: Callable[[], LoadedScene]) -> LoadedScene:
        if scene.geometry is None or scene.geometry.K_normalized is None:
            return scene
        geometry = copy(scene.geometry)
        geometry.K_normalized = scene.geometry.K_normalized.clone()
        geometry.K_normalized[:, [0, 1], [0, 1]] *= 1 + self.relative_error
        return replace(scene, geometry=geometry, true_geometry=scene.target_geometry)


class CameraErrors(Perturbation):
    """State wrong poses, or none, for the views of a scene. Subclasses define `change`.

    The errors depend on the scene's name, the frames that are shown and `seed` alone, so that all models are tested
    with the same ones. The two frames of a view have the same error. Scenes without cameras are unchanged. Oracles
    answer from the same wrong poses, so that their scores show what must be lost, see `evaluation.baselines`.

    Args:
        seed: Seed of the errors.
    """

    requires_cameras = True

    def __init__(self, seed: int = 0) -> None:
        self.seed = seed

    def __call__(self, scene: LoadedScene, read_other: Callable[[], LoadedScene]) -> LoadedScene:
        if scene.geometry is None or not scene.geometry.has_cameras:
            return scene
        return with_poses(scene, self.poses(scene.name, told_poses(scene)))

    def poses(self, scene: str, world_to_camera: Poses, shown: Sequence[int] | None = None) -> Poses:
        """Return the wrong poses of a scene, NaN for a frame without a camera.

        Args:
            scene: Name of the scene.
            world_to_camera: True poses, NaN for a frame without a camera.
            shown: The frames that are shown, two per view. The others have the errors of the view before them. None is
                all of them.
        """
        count, seed = len(world_to_camera), random.Random(f"{self.seed}/{scene}").getrandbits(32)
        views = frames_of_views(range(count) if shown is None else shown, count)
        return self.change(world_to_camera, views, torch.Generator().manual_seed(seed))

    @abstractmethod
    def change(self, world_to_camera: Poses, views: Views, draws: torch.Generator) -> Poses:
        """Return the wrong poses, see `poses`.

        Args:
            world_to_camera: True poses, NaN for a frame without a camera.
            views: The frames of each view, see `frames_of_views`.
            draws: Random generator.
        """


def wrong_poses(perturbation: Perturbation | None, shown: Mapping[str, Sequence[int]]) -> ChangePoses | None:
    """Return what makes the wrong poses of a test, or None if its poses are true or another scene's.

    `shown` has the frames of each scene that the test shows. Of other scenes it shows all.
    """
    if not isinstance(perturbation, CameraErrors):
        return None
    return lambda scene, world_to_camera: perturbation.poses(scene, world_to_camera, shown.get(scene))


class NoisyCameras(CameraErrors):
    """Turn each view's camera about its center, about a random axis, and move it in a random direction.

    Args:
        degrees: Angle by which a camera turns.
        translation: Distance by which a camera moves, relative to the mean distance between the cameras of two views.
            0.5 is 50 %.
        seed: Seed of the errors.

    Raises:
        InputError: An error is negative, or both are zero.
    """

    def __init__(self, degrees: float = 0.0, translation: float = 0.0, seed: int = 0) -> None:
        super().__init__(seed)
        check_errors("--data.perturbation", degrees, translation)
        self.degrees, self.translation = degrees, translation

    def change(self, world_to_camera: Poses, views: Views, draws: torch.Generator) -> Poses:
        return with_errors(world_to_camera, views, self.degrees, self.translation, draws)


class DriftingCameras(NoisyCameras):
    """Accumulate errors along the path, as odometry does. The first view with a camera is correct.

    Args:
        degrees: Angle of the error in the step from one view to the next.
        translation: Length of the error in this step, relative to the mean distance between the cameras of two views.
        seed: Seed of the errors.

    Raises:
        InputError: An error is negative, or both are zero.
    """

    def change(self, world_to_camera: Poses, views: Views, draws: torch.Generator) -> Poses:
        return with_errors(world_to_camera, views, self.degrees, self.translation, draws, accumulate=True)


class ScaledCameras(CameraErrors):
    """Multiply all translations by a factor, as if the cameras were in another unit. Depth keeps its unit.

    Args:
        factor: The factor.

    Raises:
        InputError: The factor is not positive.
    """

    def __init__(self, factor: float = 2.0) -> None:
        super().__init__()
        if not factor > 0:
            raise InputError(f"--data.perturbation.factor {factor}: a positive factor of all translations")
        self.factor = factor

    def change(self, world_to_camera: Poses, views: Views, draws: torch.Generator) -> Poses:
        return rigid_matrix(world_to_camera[:, :3, :3], self.factor * world_to_camera[:, :3, 3])


class MissingCameras(CameraErrors):
    """Remove the cameras of some views, drawn at random. With a larger number, the same views and others lose theirs.

    Args:
        views: Number of views that lose their camera.
        seed: Seed of the draw.
        keep_first: The first view with a camera keeps it. Without it the poses have another reference.

    Raises:
        InputError: The number is not positive, or no view of a scene keeps its camera.
    """

    def __init__(self, views: int = 1, seed: int = 0, keep_first: bool = False) -> None:
        super().__init__(seed)
        if views < 1:
            raise InputError(f"--data.perturbation.views {views}: at least 1 view loses its camera")
        self.views, self.keep_first = views, keep_first

    def change(self, world_to_camera: Poses, views: Views, draws: torch.Generator) -> Poses:
        if self.views >= len(known := views_with_camera(world_to_camera, views)):
            raise InputError(f"--data.perturbation.views {self.views}: a scene has {len(known)} views with a camera")
        return without_cameras(world_to_camera, known[1:] if self.keep_first else known, self.views, draws)


class LongerFocalLength(Perturbation):
    """Enlarge the middle of the frames, to a field of view that training may never have shown. Cameras stay correct.

    Args:
        factor: Factor of the focal length.
    """

    def __init__(self, factor: float = 1.5) -> None:
        if not factor > 1:
            raise InputError(f"--data.perturbation.factor {factor}: a factor above 1")
        self.factor = factor

    def __call__(self, scene: LoadedScene, read_other: Callable[[], LoadedScene]) -> LoadedScene:
        return enlarged(scene, self.factor)


class FramesOnOtherCameras(Perturbation):
    """Permute the temporal patches, while cameras, frame numbers and times stay in place. The scene's name is the seed.

    No temporal patch keeps its camera. Depth moves with its frame.
    """

    requires_cameras = True

    def __call__(self, scene: LoadedScene, read_other: Callable[[], LoadedScene]) -> LoadedScene:
        if scene.geometry is None or not scene.geometry.has_cameras:
            return scene
        order = _shuffled(scene, none_stays=True)
        moved = scene.change_geometry(lambda geometry: geometry[order])
        assert moved.geometry is not None
        geometry = copy(moved.geometry)
        geometry.world_to_camera, geometry.K_normalized, geometry.has_camera = self._cameras(scene.geometry, geometry)
        return replace(moved, **_frames(scene, order), geometry=geometry, true_geometry=moved.target_geometry)

    def _cameras(self, own: SceneGeometry, moved: SceneGeometry) -> tuple[Tensor, Tensor, Tensor]:
        """Return the cameras of the moved frames, in the form of `SceneGeometry.cameras`."""
        return own.cameras()


class FramesAtOtherCenters(FramesOnOtherCameras):
    """Permute the temporal patches with their rotations and intrinsics, while the camera centers stay in place.

    No temporal patch keeps its center. The camera's path and the viewing directions of the frames are unchanged. A
    lower score therefore shows that the model uses the positions from which things are seen.
    """

    def _cameras(self, own: SceneGeometry, moved: SceneGeometry) -> tuple[Tensor, Tensor, Tensor]:
        (stay, _, has_stayed), (turned, K, has_moved) = own.cameras(), moved.cameras()
        poses = turned.clone()
        poses[:, :3, 3:] = -poses[:, :3, :3] @ invert_se3(stay)[:, :3, 3:]
        return poses, K, has_stayed & has_moved


class ShuffledFrames(Perturbation):
    """Permute the temporal patches. Each keeps its camera, frame number and time. The scene's name is the seed."""

    def __call__(self, scene: LoadedScene, read_other: Callable[[], LoadedScene]) -> LoadedScene:
        return _in_order(scene, _shuffled(scene))


class ReversedFrames(Perturbation):
    """Show the frames from last to first. Each keeps its camera, frame number and time."""

    def __call__(self, scene: LoadedScene, read_other: Callable[[], LoadedScene]) -> LoadedScene:
        return _in_order(scene, range(len(scene.frame_indices or ()))[::-1])


class ShuffledFrameNumbers(Perturbation):
    """Permute the frame numbers, while the frames stay in order. The scene's name is the seed."""

    def __call__(self, scene: LoadedScene, read_other: Callable[[], LoadedScene]) -> LoadedScene:
        numbers = scene.frame_indices or ()
        return replace(scene, frame_indices=tuple(numbers[i] for i in _shuffled(scene)))


class OtherGeometry(Perturbation):
    """Use the 3D tokens of another scene. 2D tokens and cameras remain the scene's own."""

    def __call__(self, scene: LoadedScene, read_other: Callable[[], LoadedScene]) -> LoadedScene:
        other = read_other()
        assert scene.frames is not None
        order, geometry = _repeated(len(other.frame_indices or ()), scene), other.geometry
        # the 3D tokens need the grid of the 2D tokens
        shown: dict[str, Any] = {
            name: _in_size_of(getattr(scene, name), each) for name, each in _frames(other, order).items()
        }
        if geometry is not None:
            geometry = geometry[order]
            if geometry.depth is not None:
                geometry.depth = resize_depth(geometry.depth, (scene.frames.shape[-2], scene.frames.shape[-1]))
        override = replace(other, **shown, vision_window=scene.vision_window, geometry=geometry)
        return replace(scene, geometry_override=override)


class ZeroGeometry(Perturbation):
    """Replace the 3D tokens by zeros."""

    def __call__(self, scene: LoadedScene, read_other: Callable[[], LoadedScene]) -> LoadedScene:
        return replace(scene, geometry_override="nothing")


class PerturbedScenes(Dataset):
    """Apply a perturbation to the scenes of a test.

    Args:
        scenes: The scenes with the questions to ask.
        every: All scenes of the test. A resumed test takes the other scene from the same list.
        perturbation: Applied to each scene that can be read.

    Raises:
        InputError: The perturbation requires cameras, and no scene has any.
    """

    def __init__(self, scenes: SceneDataset, every: SceneDataset, perturbation: Perturbation) -> None:
        if perturbation.requires_cameras and all(scene.cameras is None for scene in every.scenes):
            name = type(perturbation).__name__
            raise InputError(f"--data.perturbation {name} changes cameras, and no scene of the test has some")
        self.scenes, self.every, self.perturbation = scenes, every, perturbation
        self._place = {scene.name: place for place, scene in enumerate(every.scenes)}

    def __len__(self) -> int:
        return len(self.scenes)

    def __getitem__(self, index: int) -> LoadedScene:
        loaded = self.scenes[index]
        if loaded.error is not None:
            return loaded
        try:
            return self.perturbation(loaded, lambda: self._read_other(loaded))
        except InputError as error:
            return replace(loaded, error=format_scene_error(loaded.name, error))

    def _read_other(self, loaded: LoadedScene) -> LoadedScene:
        """Return the first suitable scene, starting half a list away because neighbors may show the same room."""
        place, count = self._place[loaded.name], len(self.every)
        for step in range(count):
            i = (place + count // 2 + step) % count
            if i == place:
                continue
            other = self.every[i]
            has_cameras = other.geometry is not None and other.geometry.has_cameras
            if other.error is None and (has_cameras or not self.perturbation.requires_cameras):
                return other
        raise InputError("the test has no other scene that could perturb it")


def _in_order(scene: LoadedScene, order: Sequence[int]) -> LoadedScene:
    """Return the scene with its frames, cameras and times in another order."""
    numbers = scene.frame_indices or ()
    shown = replace(
        scene,
        **_frames(scene, order),
        frame_indices=tuple(numbers[i] for i in order),
        frame_times=None if scene.frame_times is None else tuple(scene.frame_times[i] for i in order),
    )
    return shown.change_geometry(lambda geometry: geometry[list(order)])


def _frames(scene: LoadedScene, order: Sequence[int]) -> dict[str, Any]:
    """Return the fields of a scene that hold frames, reordered. `geometry_frames` is included if the scene has it."""
    shown = {"frames": scene.frames, "geometry_frames": scene.geometry_frames}
    return {name: frames[list(order)] for name, frames in shown.items() if frames is not None}


def _in_size_of(own: Tensor | None, frames: Tensor) -> Tensor | None:
    """Resize frames to the size of `own`. Return None if `own` is None."""
    if own is None or frames.shape[-2:] == own.shape[-2:]:
        return None if own is None else frames
    size = (own.shape[-2], own.shape[-1])
    return F.interpolate(frames.float(), size, mode="bilinear", antialias=True).round().to(frames.dtype)


def _shuffled(scene: LoadedScene, none_stays: bool = False) -> list[int]:
    """Return frame indices with the temporal patches shuffled. At least one patch moves, or all if `none_stays`."""
    count = len(scene.frame_indices or ()) // TEMPORAL_PATCH_SIZE
    chance, order = random.Random(scene.name), list(range(count))
    enough = all if none_stays else any
    while count > 1 and not enough(place != patch for place, patch in enumerate(order)):
        chance.shuffle(order)
    return [TEMPORAL_PATCH_SIZE * patch + i for patch in order for i in range(TEMPORAL_PATCH_SIZE)]


def _repeated(count: int, scene: LoadedScene) -> list[int]:
    """Return as many frame indices as the scene has frames, all below `count`, in cycles."""
    return [i % count for i in range(len(scene.frame_indices or ()))]
