"""Augmentations of training scenes. Frames, intrinsics and depth change together, as another camera would see them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import replace

import torch
from jaxtyping import UInt8
from torch import Tensor
from torch.nn import functional as F

from zoo.cameras.scene_geometry import Window
from zoo.configuration import Configurable
from zoo.errors import InputError
from zoo.sequences.loaded_scene import LoadedScene


class Augmentation(Configurable, ABC):
    """Change the frames and the geometry of a training scene. Its questions stay the same."""

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
    geometry = None if scene.geometry is None else window.crop(scene.geometry, size)
    return replace(scene, frames=_enlarged(scene.frames, window), geometry_frames=others, geometry=geometry)


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
