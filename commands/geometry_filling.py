"""What cache-geometry computes of a scene: the geometry that the model uses, and what its teacher gives a training."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from datamodules.loaded_scene import LoadedScene
from zoo.cameras.scene_geometry import SceneGeometry
from zoo.geometry import CachedGeometry
from zoo.geometry.base import encoder_frames
from zoo.geometry.reader import geometry_of_frames, shown_frames
from zoo.model import SpatialVLM
from zoo.objectives.teacher_model import Teacher
from zoo.sequences.layout import TEMPORAL_PATCH_SIZE
from zoo.sequences.loaded_scene import SceneInputs

Asked = tuple[Float[Tensor, "S 3 H W"], SceneGeometry | None]  # frames and the dataset's geometry, as a run asks


class Filling(ABC):
    """Fill a cache with the entries that a run looks up.

    Attributes:
        encoder: Behind the cache.
        wanted: Which of its outputs are used.
        described: These in words.
        option: Of the cache.
    """

    encoder: CachedGeometry
    wanted: dict[str, bool]
    described: str
    option: str

    def __init__(self) -> None:
        self._first: Asked | None = None

    @property
    def num_computed(self) -> int:
        """Number of scenes of which something was computed."""
        return self.encoder.num_computed

    def fill(self, loaded: LoadedScene, device: str) -> None:
        """Compute the entries of a scene that the cache lacks."""
        asked = self.compute(loaded, device)
        self._first = self._first or asked

    @abstractmethod
    def compute(self, loaded: LoadedScene, device: str) -> Asked:
        """Ask for the entries of a scene as a run does, and return what is asked of the encoder."""

    @property
    def has_lost_entries(self) -> bool:
        """Whether the cache was full and no longer has the first scene."""
        if self._first is None:
            return False
        frames, given = self._first
        return not self.encoder.holds(frames, given, **self.wanted)


class ModelFilling(Filling):
    """The geometry that a model uses.

    Args:
        model: With a cached encoder.
        wanted: See `Filling`.
    """

    option = "--model.geometry_cache"

    def __init__(self, model: SpatialVLM, wanted: dict[str, bool]) -> None:
        super().__init__()
        encoder: Any = model.geometry
        self._model, self.encoder, self.wanted = model, encoder, wanted
        self.described = " and ".join(name for name, is_wanted in wanted.items() if is_wanted)

    def compute(self, loaded: LoadedScene, device: str) -> Asked:
        """See `Filling`."""
        shown = shown_frames(loaded.kind, self._model.stills_once)
        given = None if loaded.geometry is None else loaded.geometry[shown].to(device)
        frames = loaded.seen_by_geometry[shown].to(device)
        given = geometry_of_frames(given, frames, loaded.tower_window)
        scene = encoder_frames(frames, self._model.backbone.patch_size, self.encoder.patch_size), given
        self.encoder(*([each] for each in scene), **self.wanted)
        return scene


class TeacherFilling(Filling):
    """What a teacher computes for a training: what objectives learn of it, and a scale if that has a cache.

    Args:
        teacher: With a cache.
        patch_size: Of the vision tower, in pixels.
    """

    described = "the teacher's targets"
    option = "--model.teacher.cache"

    def __init__(self, teacher: Teacher, patch_size: int) -> None:
        super().__init__()
        encoder: Any = teacher.encoder
        self._teacher, self._patch_size, self.encoder = teacher, patch_size, encoder
        self.encoder.match_patches(patch_size)
        self.wanted = teacher.wanted

    @property
    def num_computed(self) -> int:
        """See `Filling`."""
        return self.encoder.num_computed + getattr(self._teacher.scale, "num_computed", 0)

    def compute(self, loaded: LoadedScene, device: str) -> Asked:
        """See `Filling`."""
        assert loaded.frames is not None
        frames, (height, width) = loaded.seen_by_geometry, loaded.frames.shape[-2:]
        grid = len(frames) // TEMPORAL_PATCH_SIZE, height // self._patch_size, width // self._patch_size
        geometry = None if loaded.geometry is None else loaded.geometry.without_invalid_cameras()
        scene = SceneInputs(
            torch.empty(0, 0),
            grid,
            kind=loaded.kind,
            frames=frames,
            geometry=geometry,
            tower_window=loaded.tower_window,
        )
        self._teacher([scene.to(device)], self._patch_size)
        every_patch = slice(None, None, TEMPORAL_PATCH_SIZE)
        asked = encoder_frames(frames[every_patch], self._patch_size, self._patch_size)
        return asked, geometry_of_frames(geometry and geometry[every_patch], asked, loaded.tower_window)
