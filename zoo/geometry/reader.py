"""Cached geometry, read by data workers beside the frames, so that a step neither waits for a disk nor for a hash."""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Shaped
from torch import Tensor

from zoo.cameras.scene_geometry import SceneGeometry, Window
from zoo.geometry.cache_entries import CacheEntries
from zoo.sequences.layout import TEMPORAL_PATCH_SIZE, MediaKind

EVERY_FRAME = slice(None)


def shown_frames(kind: MediaKind, stills_once: bool) -> slice:
    """Return the frames of a scene that the geometry encoder sees; the two equal ones of a still may be one."""
    return slice(None, None, TEMPORAL_PATCH_SIZE) if stills_once and kind == "image" else EVERY_FRAME


def geometry_of_frames(
    geometry: SceneGeometry | None, frames: Shaped[Tensor, "S 3 H W"], window: Window | None
) -> SceneGeometry | None:
    """Return the dataset's geometry of the frames that the geometry encoder sees.

    Args:
        geometry: Of what the vision tower sees of them; None if the dataset has none.
        frames: The encoder's.
        window: What of them the tower sees; None is everything.
    """
    if geometry is None or window is None:
        return geometry
    return window.inverse.crop(geometry, (frames.shape[-2], frames.shape[-1]))


@dataclass(frozen=True)
class GeometryReader:
    """Read what a model uses of a scene's cached geometry.

    Attributes:
        entries: Of the cached encoder.
        tokens: Whether the model uses 3D tokens.
        predicted_cameras: Whether it may use predicted cameras.
        only_predicted: Whether it uses them for scenes with cameras as well.
        stills_once: See `encode_geometry`.
    """

    entries: CacheEntries
    tokens: bool
    predicted_cameras: bool
    only_predicted: bool
    stills_once: bool = False

    def read(
        self,
        frames: Shaped[Tensor, "S 3 H W"],
        given: SceneGeometry | None,
        kind: MediaKind,
        *,
        has_cameras: bool,
        window: Window | None = None,
    ) -> SceneGeometry | None:
        """The geometry of a scene; None if it has to be computed, or if nothing is asked of the encoder.

        Args:
            frames: As the model gets them.
            given: The dataset's geometry of what the vision tower sees.
            kind: Of the scene.
            has_cameras: Whether the scene has merged cameras of the dataset.
            window: What of the frames the tower sees; None is everything.
        """
        cameras = self.predicted_cameras and (self.only_predicted or not has_cameras)
        if not (self.tokens or cameras):
            return None
        shown = shown_frames(kind, self.stills_once)
        own = geometry_of_frames(given and given[shown], frames, window)
        return self.entries.read(frames[shown], own, tokens=self.tokens, cameras=cameras)
