"""How far is a wall whose panel is as large as any other?"""

from __future__ import annotations

from typing import ClassVar

import numpy as np
from jaxtyping import Float64

from datamodules.sources.rooms.panels.parallax import PanelParallax
from datamodules.sources.rooms.scene import RoomScene

SIDE_M = 1.0  # of every panel


class PanelKnownSize(PanelParallax):
    """`PanelParallax` with panels of one size: how large the panel is in an image tells the distance.

    Images alone answer, up to the range of the fields of view. A model that is told of depth in its training alone may
    learn it sooner; cameras add no more than their focal length.
    """

    version: ClassVar[int] = 1

    def draw_size(self, distance: float, rng: np.random.Generator) -> Float64[np.ndarray, " sides"]:
        """Return the size that all panels have."""
        return np.array([SIDE_M, SIDE_M])

    def draw_lamp(
        self, room: RoomScene, wall: Float64[np.ndarray, " 3"], distance: float, rng: np.random.Generator
    ) -> Float64[np.ndarray, " 3"]:
        """Return the lamp of the hall: the shading tells the distance as well, which images may tell here."""
        return np.array(room.light)
