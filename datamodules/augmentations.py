"""Augmentations of training scenes, by what a camera could have seen: frames, intrinsics and depth change together."""

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
    """Change the frames and the geometry of a training scene, and not its questions."""

    @abstractmethod
    def __call__(self, scene: LoadedScene) -> LoadedScene:
        """Return the changed scene.

        Args:
            scene: A scene that could be read; its `draw` is the seed of what is random.
        """


class RandomFocalLength(Augmentation):
    """A focal length that is longer by a random factor, and with it a random principal point.

    A window of the frames, the same in all of a scene, is enlarged to their size. The intrinsics are corrected, so the
    cameras stay true; poses and lengths are unchanged.

    Args:
        longest: Largest factor; its logarithm is uniform from 0 on.

    Raises:
        InputError: A factor that is not above 1.
    """

    def __init__(self, longest: float = 1.5) -> None:
        if not longest > 1:
            raise InputError(f"--data.augmentation.longest {longest}: a factor above 1")
        self.longest = longest

    def __call__(self, scene: LoadedScene) -> LoadedScene:
        factor, *place = torch.rand(3, generator=torch.Generator().manual_seed(scene.draw)).tolist()
        return enlarged(scene, self.longest**factor, (place[0], place[1]))


def enlarged(scene: LoadedScene, factor: float, place: tuple[float, float] = (0.5, 0.5)) -> LoadedScene:
    """Return a scene with a window of its frames enlarged to their size, as a lens of longer focal length sees it.

    What the geometry encoder sees of other frames is enlarged about the same point of the pictures.

    Args:
        scene: A scene that could be read.
        factor: Of the focal length, at least 1.
        place: Of the window, from 0 (left, top) to 1 (right, bottom).
    """
    assert scene.frames is not None
    size = (scene.frames.shape[-2], scene.frames.shape[-1])
    window = _window(size, factor, place)
    others = scene.geometry_frames
    if others is not None:
        if (seen := scene.vision_window) is not None:  # its point in the encoder's frames, as a share of their sides
            across, down = seen.left + place[0] * seen.columns, seen.top + place[1] * seen.rows
            place = (across / seen.width, down / seen.height)
        others = _enlarged(others, _window((others.shape[-2], others.shape[-1]), factor, place))
    geometry = None if scene.geometry is None else window.crop(scene.geometry, size)
    return replace(scene, frames=_enlarged(scene.frames, window), geometry_frames=others, geometry=geometry)


def _window(size: tuple[int, int], factor: float, place: tuple[float, float]) -> Window:
    """Return the window of frames of this size that is enlarged."""
    rows, columns = (max(1, round(side / factor)) for side in size)
    left, top = round(place[0] * (size[1] - columns)), round(place[1] * (size[0] - rows))
    return Window(size[0], size[1], top, left, rows, columns)


def _enlarged(frames: UInt8[Tensor, "T 3 H W"], window: Window) -> UInt8[Tensor, "T 3 H W"]:
    """Return a window of frames in the size of the frames."""
    shown = frames[(..., *window.place)].float()
    wide = F.interpolate(shown, (window.height, window.width), mode="bilinear", antialias=True)
    return wide.round().clamp(0, 255).to(frames.dtype)
