"""In which direction is the second panel, seen from the first?"""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

import numpy as np
from jaxtyping import Float64

from datamodules.sources.rooms.panels.panel import hang, places_towards, seen
from datamodules.sources.rooms.panels.task import PanelScene, PanelTask
from datamodules.sources.rooms.panels.tour import CEILING_M, EYE_HEIGHT_M, draw_shares, look_from, plain_room
from datamodules.sources.rooms.scene import RoomScene
from zoo.errors import InputError
from zoo.sequences.visual_grid import TEMPORAL_PATCH_SIZE

ANSWERS = ("left", "right", "back")
TURNS_DEG = ((55.0, 125.0), (-125.0, -55.0), (145.0, 215.0))  # from the first panel to the second, to the left
SIDE_M = (3.5, 4.0)
SIZE_M = (0.4, 0.6)
CENTER_ABOVE_EYE_M = 0.2
MAX_ATTEMPTS = 2000
QUESTION = "If I am standing at the camera and facing the red panel, is the blue panel to my left, right, or back?"


class PanelRotation(PanelTask):
    """The direction of a blue panel for someone who faces the red panel, from a camera that only turns.

    Views are spread evenly over all directions, in random order. All cameras have nearly the same center: rotations
    decide, and translations can't. If an encoding by rotations alone is as good as one by whole poses, translations
    cost nothing where there are none; if one by translations alone is above chance, it contains rotations.
    """

    question_type: ClassVar[str] = "panel_direction"

    def draw(self, frames: int, K_px: Float64[np.ndarray, "3 3"], rng: np.random.Generator) -> PanelScene:
        """Draw the answer, a room with a turning camera, the red panel and one of the places of the blue panel."""
        answer = rng.integers(len(ANSWERS))
        for _ in range(MAX_ATTEMPTS):
            room, camera_from_room = self.draw_path(frames, rng)
            eye = np.linalg.inv(camera_from_room[0])[:3, 3]
            sizes = rng.uniform(*SIZE_M, (2, 2))
            red = rng.uniform(-np.pi, np.pi)
            turns = np.deg2rad([rng.uniform(*limits) for limits in TURNS_DEG])
            above = rng.uniform(-CENTER_ABOVE_EYE_M, CENTER_ABOVE_EYE_M, 2)[[0, 1, 1, 1], None]
            places, walls = places_towards(np.append(red, red + turns), eye + above * [0, 0, 1], room, sizes.max())
            stations = camera_from_room[::TEMPORAL_PATCH_SIZE]
            if seen(places, stations, K_px).any(0).all():  # every answer, not this one: the room says nothing about it
                panels = [hang("red", places[0], walls[0], *sizes[0])]
                panels.append(hang("blue", places[1 + answer], walls[1 + answer], *sizes[1]))
                options = tuple(f"{letter}. {option}" for letter, option in zip("ABC", ANSWERS, strict=True))
                room = replace(room, things=tuple(panels))
                return PanelScene(room, camera_from_room, QUESTION, "ABC"[answer], options)
        raise InputError(
            f"PanelRotation: {MAX_ATTEMPTS} rooms in a row hide a panel: take more --data.source.frames than {frames},"
            " or a wider --data.source.fov"
        )

    def draw_path(self, frames: int, rng: np.random.Generator) -> tuple[RoomScene, Float64[np.ndarray, "T 4 4"]]:
        """Draw an empty room and a camera that turns in its middle, from the room's frame."""
        size = np.array([*rng.uniform(*SIDE_M, 2), rng.uniform(*CEILING_M)])
        yaw = 2 * np.pi * (draw_shares(frames // TEMPORAL_PATCH_SIZE, rng) + rng.random())
        center = np.tile(rng.uniform(-0.2, 0.2, 2), (len(yaw), 1))
        eyes = look_from(center, yaw, rng.uniform(*EYE_HEIGHT_M), TEMPORAL_PATCH_SIZE, rng)
        return plain_room(size, rng), eyes
