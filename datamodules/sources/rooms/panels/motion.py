"""To which side does the panel move?"""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

import numpy as np
from jaxtyping import Float64

from datamodules.sources.rooms.panels.panel import THICKNESS_M, hang
from datamodules.sources.rooms.panels.task import PanelScene, PanelTask
from datamodules.sources.rooms.panels.tour import EYE_HEIGHT_M, draw_room, look_from
from datamodules.sources.rooms.questions import choice
from zoo.sequences.layout import TEMPORAL_PATCH_SIZE

OPTIONS = ("to the left", "to the right")
TO_WALL_M = (1.5, 2.5)  # of the camera
SIZE_M = (0.4, 0.7)
CENTER_ABOVE_EYE_M = 0.2
IN_VIEW = 0.8  # of half the frame: a center beyond is not shown
WAY = (1.0, 1.7)  # of the panel, in units of half of what is in view
QUESTION = "To which side does the red panel move in the video?"


class PanelMotion(PanelTask):
    """To which side a panel moves before a camera that stands still: a thing that moves, and the order of the frames.

    The panel rests while a token's two frames are taken, so that no token contains a motion: only the order of the
    tokens tells. With constant time (`ConstantIndex`) a causal decoder still knows that order, and Qwen3-VL reads the
    times in its prompt: if constant time costs nothing, these suffice; if it costs, the positions of time are what a
    decoder uses. With `ShuffledFrames` any model must fall to chance. Cameras are equal, and say nothing.
    """

    question_type: ClassVar[str] = "panel_motion"
    version: ClassVar[int] = 2

    def draw(self, frames: int, K_px: Float64[np.ndarray, "3 3"], rng: np.random.Generator) -> PanelScene:
        """Draw the answer, a way along the wall, and the camera before it."""
        answer = rng.integers(len(OPTIONS))
        stations = frames // TEMPORAL_PATCH_SIZE
        room = draw_room(rng)
        eye_height, to_wall = rng.uniform(*EYE_HEIGHT_M), rng.uniform(*TO_WALL_M)
        plan = np.tile([0.0, to_wall - room.size[1] / 2], (stations, 1))
        camera_from_room = look_from(plan, np.full(stations, -np.pi / 2), eye_height, TEMPORAL_PATCH_SIZE, rng)
        in_view = IN_VIEW * to_wall * K_px[0, 2] / K_px[0, 0]
        way = in_view * rng.uniform(*WAY)
        # x points to the left of the camera, which looks along -y
        x = np.linspace(0, way, stations) + rng.uniform(-in_view, in_view - way)
        x = (x if answer == 0 else x[::-1]).repeat(TEMPORAL_PATCH_SIZE)
        y, z = (THICKNESS_M - room.size[1]) / 2, eye_height + rng.uniform(-CENTER_ABOVE_EYE_M, CENTER_ABOVE_EYE_M)
        panel = hang("red", np.array([x[0], y, z]), 2, *rng.uniform(*SIZE_M, 2))
        panel = replace(panel, track=tuple((place, y, 0.0) for place in x.tolist()))
        asked = choice(OPTIONS, OPTIONS[answer])
        return PanelScene(replace(room, things=(panel,)), camera_from_room, QUESTION, *asked)
