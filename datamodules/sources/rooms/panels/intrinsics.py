"""How wide is the panel?"""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

import numpy as np
from jaxtyping import Float64

from datamodules.sources.rooms.panels.panel import THICKNESS_M, hang
from datamodules.sources.rooms.panels.task import PanelScene, PanelTask
from datamodules.sources.rooms.panels.tour import look_from, plain_room
from zoo.sequences.visual_grid import TEMPORAL_PATCH_SIZE

WIDTHS_M = np.geomspace(0.18, 0.7, 16)  # the answers
HEIGHT_M = (0.2, 0.8)
TO_WALL_M = 1.5  # of all cameras
ASIDE_M = 0.05  # at most, of a camera from the panel's center, up and along the wall
HALL_M = 42.0  # length, width and height: no camera sees an edge of the wall, which would give its field of view away
TEXTURE_M = (0.3, 3.0)  # unit of the wall's pattern, which would give it away as well
QUESTION = "What is the width of the red panel, measured in centimeters?"


class PanelIntrinsics(PanelTask):
    """The width of a panel, which cameras of unknown field of view see from a known distance.

    All cameras face one large wall at the same distance and see the whole panel, so that the width is the angle between
    two pixels, times that distance: it needs K. Take a wide range, `--data.source.fov [35,110]`. An encoding without K
    (GTA) can't be better than images alone. If PRoPE is, it uses K; a model trained on one range and tested on another
    shows whether it has learned the rule; `WrongFocalLength` must shift its answers by as much as the focal length.
    """

    question_type: ClassVar[str] = "panel_width"
    version: ClassVar[int] = 2

    def draw(self, frames: int, K_px: Float64[np.ndarray, "3 3"], rng: np.random.Generator) -> PanelScene:
        """Draw the answer, the panel, and cameras before it."""
        width, height = rng.choice(WIDTHS_M), rng.uniform(*HEIGHT_M)
        room = plain_room(np.full(3, HALL_M), rng, unit=np.exp(rng.uniform(*np.log(TEXTURE_M))))
        stations = frames // TEMPORAL_PATCH_SIZE
        plan = np.column_stack([rng.uniform(-ASIDE_M, ASIDE_M, stations), np.full(stations, TO_WALL_M - HALL_M / 2)])
        camera_from_room = look_from(plan, np.full(stations, -np.pi / 2), HALL_M / 2, TEMPORAL_PATCH_SIZE, rng)
        up = HALL_M / 2 + rng.uniform(-ASIDE_M, ASIDE_M)
        room = replace(room, things=(hang("red", np.array([0.0, (THICKNESS_M - HALL_M) / 2, up]), 2, width, height),))
        return PanelScene(room, camera_from_room, QUESTION, f"{100 * width:.0f}")
