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

WIDTHS_M = np.geomspace(0.25, 0.7, 12)  # the answers
HEIGHT_M = (0.25, 0.7)
TO_WALL_M = 1.5  # of all cameras
HALL_M = 42.0  # length, width and height: no camera sees an edge of the wall, which would give its field of view away
STEP_M = (3.0, 3.3)  # between two stations: only one sees the panel, or their number would give it away
QUESTION = "What is the width of the red panel, measured in centimeters?"


class PanelIntrinsics(PanelTask):
    """The width of a panel, which cameras of unknown field of view see from a known distance.

    All cameras face one large wall at the same distance, so that the width is the angle between two pixels, times that
    distance: it needs K. Take a wide range, `--data.source.fov [35,110]`. An encoding without K (GTA) can't be better
    than images alone. If PRoPE is, it uses K; a model trained on one range and tested on another shows whether it has
    learned the rule; `WrongFocalLength` must shift its answers by as much as the focal length.
    """

    question_type: ClassVar[str] = "panel_width"

    def draw(self, frames: int, K_px: Float64[np.ndarray, "3 3"], rng: np.random.Generator) -> PanelScene:
        """Draw the answer, a camera path along the wall, and the station in front of which the panel hangs."""
        width, height = rng.choice(WIDTHS_M), rng.uniform(*HEIGHT_M)
        room = plain_room(np.full(3, HALL_M), rng)
        stations = frames // TEMPORAL_PATCH_SIZE
        x = rng.permutation(np.arange(stations) - stations / 2) * rng.uniform(*STEP_M)
        plan = np.column_stack([x, np.full(stations, TO_WALL_M - HALL_M / 2)])
        camera_from_room = look_from(plan, np.full(stations, -np.pi / 2), HALL_M / 2, TEMPORAL_PATCH_SIZE, rng)
        at = rng.choice(plan)[0]
        center = np.array([at, (THICKNESS_M - HALL_M) / 2, HALL_M / 2])
        room = replace(room, things=(hang("red", center, 2, width, height),))
        return PanelScene(room, camera_from_room, QUESTION, f"{100 * width:.0f}")
