"""Perturbations of a test: a trained model is shown something wrong, and what its score loses, it owed to that.

    python main.py test --data.perturbation OtherCameras
    python main.py test --data.perturbation WrongFocalLength --data.perturbation.error 0.05

Nothing is trained again. A test with a perturbation has a folder of its own inside the run.
"""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import replace

import torch
from torch.nn import functional as F
from torch.utils.data import Dataset

from datamodules.collate import LoadedScene
from datamodules.dataset import SceneDataset
from zoo.configuration import Configurable
from zoo.errors import InputError
from zoo.geometry.base import SceneGeometry
from zoo.visual_grid import TEMPORAL_PATCH_SIZE


class Perturbation(Configurable, ABC):
    """Changes what a tested model is shown of a scene, and not what it is asked. Subclasses define `__call__`."""

    @abstractmethod
    def __call__(self, scene: LoadedScene, read_other: Callable[[], LoadedScene]) -> LoadedScene:
        """Returns the perturbed scene.

        Args:
            scene: A scene that could be read.
            read_other: Reads the next scene of the test; the first one follows the last.

        Raises:
            InputError: The other scene can't be read, or lacks what is taken from it.
        """


class OtherCameras(Perturbation):
    """The cameras of another scene."""

    def __call__(self, scene: LoadedScene, read_other: Callable[[], LoadedScene]) -> LoadedScene:
        if scene.geometry is None or not scene.geometry.knows_cameras:
            return scene
        other = read_other()
        if other.geometry is None or not other.geometry.knows_cameras:
            raise InputError(f"{other.scene.name} has no cameras that {scene.scene.name} could be shown with")
        poses, K, has_camera = _frames(other.geometry, _repeated(len(other.frame_indices), scene)).cameras()
        geometry = copy(scene.geometry)
        geometry.world_to_camera, geometry.K_normalized, geometry.has_camera = poses, K, has_camera
        return replace(scene, geometry=geometry)


class WrongFocalLength(Perturbation):
    """Focal lengths that are off.

    Args:
        error: Share of the focal length; 0.05 is 5 % too long.
    """

    def __init__(self, error: float = 0.05) -> None:
        if not error > -1:
            raise InputError(f"--data.perturbation.error {error}: a share above -1, of the focal length")
        self.error = error

    def __call__(self, scene: LoadedScene, read_other: Callable[[], LoadedScene]) -> LoadedScene:
        if scene.geometry is None or scene.geometry.K_normalized is None:
            return scene
        geometry = copy(scene.geometry)
        geometry.K_normalized = scene.geometry.K_normalized.clone()
        geometry.K_normalized[:, [0, 1], [0, 1]] *= 1 + self.error
        return replace(scene, geometry=geometry)


class ShuffledFrames(Perturbation):
    """The temporal patches in a random order, drawn from the scene's name; each keeps its camera, number and time."""

    def __call__(self, scene: LoadedScene, read_other: Callable[[], LoadedScene]) -> LoadedScene:
        return _in_order(scene, _shuffled(scene))


class ReversedFrames(Perturbation):
    """The frames from the last to the first; each keeps its camera, number and time."""

    def __call__(self, scene: LoadedScene, read_other: Callable[[], LoadedScene]) -> LoadedScene:
        return _in_order(scene, range(len(scene.frame_indices))[::-1])


class ShuffledFrameNumbers(Perturbation):
    """The frame numbers in a random order, drawn from the scene's name; the frames stay in theirs."""

    def __call__(self, scene: LoadedScene, read_other: Callable[[], LoadedScene]) -> LoadedScene:
        return replace(scene, frame_indices=tuple(scene.frame_indices[i] for i in _shuffled(scene)))


class OtherGeometry(Perturbation):
    """The 3D tokens of another scene; 2D tokens and cameras are the scene's own."""

    def __call__(self, scene: LoadedScene, read_other: Callable[[], LoadedScene]) -> LoadedScene:
        other = read_other()
        assert scene.frames is not None and other.frames is not None
        frames, geometry = other.frames[(order := _repeated(len(other.frames), scene))], other.geometry
        size = tuple(scene.frames.shape[-2:])
        if frames.shape[-2:] != size:  # one grid of 2D and 3D tokens
            frames = F.interpolate(frames.float(), size, mode="bilinear", antialias=True).round().to(frames.dtype)
        if geometry is not None:
            geometry = _frames(geometry, order)
            if geometry.depth is not None:
                geometry.depth = F.interpolate(geometry.depth[None], size, mode="nearest")[0]
        return replace(scene, geometry_of=replace(other, frames=frames, geometry=geometry))


class ZeroGeometry(Perturbation):
    """3D tokens of zeros."""

    def __call__(self, scene: LoadedScene, read_other: Callable[[], LoadedScene]) -> LoadedScene:
        return replace(scene, geometry_of="nothing")


class PerturbedScenes(Dataset):
    """Scenes of a test with a perturbation.

    Args:
        scenes: Those that are asked about.
        every: All scenes of the test, so that a resumed test takes the other scene from the same list.
        perturbation: It is applied to each scene that can be read.

    Raises:
        InputError: There is one scene only.
    """

    def __init__(self, scenes: SceneDataset, every: SceneDataset, perturbation: Perturbation) -> None:
        if len(every) < 2:
            raise InputError("--data.perturbation: the test has one scene, and needs another to perturb it with")
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
            return replace(loaded, error=str(error))

    def _read_other(self, loaded: LoadedScene) -> LoadedScene:
        other = self.every[(self._place[loaded.scene.name] + 1) % len(self.every)]
        if other.error is not None:
            raise InputError(f"{loaded.scene.name} can't be perturbed: {other.error}")
        return other


def _in_order(scene: LoadedScene, order: Sequence[int]) -> LoadedScene:
    """The scene with its frames in another order."""
    assert scene.frames is not None
    return replace(
        scene,
        frames=scene.frames[list(order)],
        frame_indices=tuple(scene.frame_indices[i] for i in order),
        frame_times=None if scene.frame_times is None else tuple(scene.frame_times[i] for i in order),
        geometry=None if scene.geometry is None else _frames(scene.geometry, order),
    )


def _frames(geometry: SceneGeometry, order: Sequence[int]) -> SceneGeometry:
    return SceneGeometry(**{name: value[list(order)] for name, value in geometry.present().items()})


def _shuffled(scene: LoadedScene) -> list[int]:
    """The frames, those of a temporal patch side by side."""
    patches = torch.arange(len(scene.frame_indices)).unflatten(0, (-1, TEMPORAL_PATCH_SIZE)).tolist()
    random.Random(scene.scene.name).shuffle(patches)
    return [frame for patch in patches for frame in patch]


def _repeated(count: int, scene: LoadedScene) -> list[int]:
    """As many of `count` frames as the scene has, from the start again where there are too few."""
    return [i % count for i in range(len(scene.frame_indices))]
