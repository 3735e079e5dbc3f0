"""How far is the panel, where all cameras look the same way?"""

from __future__ import annotations

from typing import ClassVar

import numpy as np
from jaxtyping import Float64

from datamodules.sources.rooms.panels.distance import PanelDistance
from datamodules.sources.rooms.panels.tour import CEILING_M, EYE_HEIGHT_M, INSET_M, draw_shares, look_from, plain_room
from datamodules.sources.rooms.scene import RoomScene

LENGTH_M, WIDTH_M = 12.0, (3.0, 4.0)
WALK_M = 7.0  # in the middle of the wall, so that no frame shows a corner


class PanelTranslation(PanelDistance):
    """`PanelDistance` along one long wall that all cameras face: only their centers differ.

    The video starts at one end of the stations, so that the panel is always on the same side of the first camera.

    If an encoding by rotations alone answers, it is no encoding by rotations alone. If one by translations alone
    answers as well as one by whole poses, rotations add nothing where cameras don't turn. If it doesn't, the encoding
    needs the rotation to express the translation.
    """

    version: ClassVar[int] = 2

    def draw_path(self, frames: int, rng: np.random.Generator) -> tuple[RoomScene, Float64[np.ndarray, "T 4 4"]]:
        """Draw a gallery, and stations along its wall: the first at one end, the others in random order."""
        size = np.array([LENGTH_M, rng.uniform(*WIDTH_M), rng.uniform(*CEILING_M)])
        x = (draw_shares(frames // self.frames_per_station, rng) - 0.5) * WALK_M
        x = np.concatenate([x[[x.argmin()]], np.delete(x, x.argmin())])
        y = np.full_like(x, rng.uniform(*INSET_M) - size[1] / 2)
        yaw = np.full_like(x, -np.pi / 2)
        eyes = look_from(np.column_stack([x, y]), yaw, rng.uniform(*EYE_HEIGHT_M), self.frames_per_station, rng)
        return plain_room(size, rng), eyes
