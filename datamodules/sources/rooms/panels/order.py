"""Which panel is seen first?"""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

import numpy as np
from jaxtyping import Float64

from datamodules.sources.rooms.panels.panel import hang, places_towards, seen
from datamodules.sources.rooms.panels.task import PanelScene, PanelTask
from datamodules.sources.rooms.panels.tour import draw_room, draw_tour
from datamodules.sources.rooms.questions import choice
from zoo.errors import InputError
from zoo.sequences.layout import TEMPORAL_PATCH_SIZE

SHOWN = ("red", "blue")
SIZE_M = (0.5, 0.7)
CLEAR, GLIMPSE = 0.7, 1.7  # half frames: a center within is seen; a panel is not, whose center is beyond
MAX_ATTEMPTS = 2000
QUESTION = "Which of these panels is seen first in the video?"


class PanelOrder(PanelTask):
    """Which of two panels is seen first: the order of the frames decides, whatever the cameras.

    Images alone answer, so that time can be told apart from cameras. With constant time (`ConstantIndex`) a causal
    decoder still knows the order of its tokens, and Qwen3-VL reads the times in its prompt: if constant time costs
    nothing, these suffice; if it costs, the positions of time are what a decoder uses. With `ShuffledFrames` any model
    must fall to chance.
    """

    question_type: ClassVar[str] = "panel_order"
    version: ClassVar[int] = 2

    def draw(self, frames: int, K_px: Float64[np.ndarray, "3 3"], rng: np.random.Generator) -> PanelScene:
        """Draw the answer, a tour, and two panels that are seen at different times."""
        answer = rng.integers(len(SHOWN))
        for _ in range(MAX_ATTEMPTS):
            room = draw_room(rng)
            camera_from_room = draw_tour(room, frames, rng)
            stations = camera_from_room[::TEMPORAL_PATCH_SIZE]
            chosen = rng.choice(len(stations), len(SHOWN), replace=False)
            eyes, forward = np.linalg.inv(stations[chosen])[:, :3, [3, 2]].transpose(2, 0, 1)
            width, height = rng.uniform(*SIZE_M, 2)
            places, walls = places_towards(np.arctan2(forward[:, 1], forward[:, 0]), eyes, room, width)
            visible, glimpsed = (seen(places, stations, K_px, within) for within in (CLEAR, GLIMPSE))
            first = visible.argmax(0)
            if visible.any(0).all() and (first == glimpsed.argmax(0)).all() and len(set(first)) == len(SHOWN):
                colors = SHOWN[answer], SHOWN[1 - answer]
                order = np.argsort(first)
                panels = [
                    hang(color, places[i], walls[i], width, height) for color, i in zip(colors, order, strict=True)
                ]
                asked = choice([f"{color} panel" for color in SHOWN], f"{SHOWN[answer]} panel")
                return PanelScene(replace(room, things=tuple(panels)), camera_from_room, QUESTION, *asked)
        raise InputError(f"PanelOrder: {MAX_ATTEMPTS} rooms in a row show no two panels one after the other")
