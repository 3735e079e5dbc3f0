"""How wide is the panel?"""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

import numpy as np
from jaxtyping import Float64

from datamodules.sources.rooms.panels.panel import THICKNESS_M, hang
from datamodules.sources.rooms.panels.task import PanelScene, PanelTask
from datamodules.sources.rooms.panels.tour import plain_room
from datamodules.sources.rooms.paths import look

WIDTHS_M = np.geomspace(0.28, 0.7, 16)  # the answers
TO_WALL_M = 1.5  # of the camera
HALL_M = 42.0  # length, width and height: no camera sees an edge of the wall
PLAIN_M = 1000.0  # unit of the wall's pattern: no camera sees any of it
FRAME_PX = 56  # for which the next two are
HEIGHT_PX, OFF_CENTER_PX = (6.0, 30.0), 4.0  # of the panel
QUESTION = "What is the width of the red panel, measured in centimeters?"


class PanelIntrinsics(PanelTask):
    """The width of a panel, which cameras of unknown field of view see from a known distance.

    The camera stands still before a large plain wall and sees the whole panel, so that the width is the angle between
    two pixels, times the distance: it needs K. The panel's height and place are drawn in pixels, and nothing else is
    seen: a thing of known size, or a camera that moves by a known amount, would give the field of view away. Only the
    widths themselves do, since a panel that fills the frame is rather a wide one: their range is much smaller than that
    of the focal lengths. Take a wide range, `--data.source.fov [35,110]`.

    An encoding without K (GTA) can't be better than images alone: the camera stands still, and relative poses are the
    identity. If PRoPE is, it uses K; a model trained on one range and tested on another shows whether it has learned
    the rule; `WrongFocalLength` should shift its answers by as much as the focal length.
    """

    question_type: ClassVar[str] = "panel_width"
    version: ClassVar[int] = 3

    def draw(self, frames: int, K_px: Float64[np.ndarray, "3 3"], rng: np.random.Generator) -> PanelScene:
        """Draw the answer, the panel, and a camera before it."""
        width = rng.choice(WIDTHS_M)
        meters = TO_WALL_M * 2 * K_px[0, 2] / FRAME_PX / K_px[0, 0]  # of a pixel of the wall, for frames of 56
        across, up = meters * rng.uniform(-OFF_CENTER_PX, OFF_CENTER_PX, 2)
        height = meters * rng.uniform(*HEIGHT_PX)
        room = plain_room(np.full(3, HALL_M), rng, PLAIN_M)
        eye = np.array([0.0, TO_WALL_M - HALL_M / 2, HALL_M / 2])
        camera_from_room = look(np.tile(eye, (frames, 1)), *np.tile([[-np.pi / 2], [0], [0]], frames))
        center = np.array([across, (THICKNESS_M - HALL_M) / 2, HALL_M / 2 + up])
        room = replace(room, things=(hang("red", center, 2, width, height),))
        return PanelScene(room, camera_from_room, QUESTION, f"{100 * width:.0f}")
