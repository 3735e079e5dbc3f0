"""By how many degrees must the camera turn to face the red panel?"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Float64

from datamodules.sources.rooms.panels.panel import seen, stand
from datamodules.sources.rooms.panels.task import PanelScene, PanelTask
from datamodules.sources.rooms.panels.tour import CEILING_M, EYE_HEIGHT_M, draw_shares, look_from, plain_room
from datamodules.sources.rooms.scene import RoomScene
from zoo.errors import InputError
from zoo.sequences.layout import TEMPORAL_PATCH_SIZE

TURNS_DEG = np.geomspace(75, 285, 16).round()  # the answers: a panel that the first view does not show
SIDE_M = (3.5, 4.0)
SIZE_M = (0.6, 0.8)
AWAY_M = 1.2  # of the panel from the camera, horizontally
CENTER_ABOVE_EYE_M = 0.2
MAX_ATTEMPTS = 2000
QUESTION = (
    "By how many degrees must the camera turn to the left from where it looks at the start of the video to face the"
    " red panel?"
)


class PanelRotation(PanelTask):
    """The direction of a panel from where the video starts to look, in degrees to the left, for a camera that turns.

    The panel stands in the room, upright to its direction from the camera. Views are spread evenly over all directions,
    in random order. All cameras have nearly the same center: rotations decide, and translations can't. If an encoding
    by rotations alone is as good as one by whole poses, translations cost nothing where there are none; if one by
    translations alone is above the images, it contains rotations.
    """

    question_type: ClassVar[str] = "panel_turn"
    version: ClassVar[int] = 3

    answers: ClassVar[int] = len(TURNS_DEG)

    def draw(self, frames: int, K_px: Float64[np.ndarray, "3 3"], rng: np.random.Generator) -> PanelScene:
        """Draw the answer, a room with a turning camera, and the panels in the directions of that answer."""
        answer = int(rng.integers(self.answers))
        for _ in range(MAX_ATTEMPTS):
            room, camera_from_room = self.draw_path(frames, rng)
            start = np.linalg.inv(camera_from_room[0])
            directions = self.draw_directions(np.arctan2(start[1, 2], start[0, 2]), rng)
            away = AWAY_M * np.stack([np.cos(directions), np.sin(directions), np.zeros_like(directions)], 1)
            places = start[:3, 3] + away
            places[:, 2] += rng.uniform(-CENTER_ABOVE_EYE_M, CENTER_ABOVE_EYE_M)
            width, height = rng.uniform(*SIZE_M, 2)
            if seen(places, camera_from_room[::TEMPORAL_PATCH_SIZE], K_px).any(0).all():  # every answer, not this one
                shown, *asked = self.ask(answer)
                things = [stand(color, places[i], directions[i], width, height) for color, i in shown.items()]
                return PanelScene(replace(room, things=tuple(things)), camera_from_room, *asked)
        raise InputError(
            f"{type(self).__name__}: {MAX_ATTEMPTS} rooms in a row hide a panel: take more --data.source.frames than"
            f" {frames}, or a wider --data.source.fov"
        )

    def draw_directions(self, start: float, rng: np.random.Generator) -> Float64[np.ndarray, " n"]:
        """Return the directions in which a panel may stand, in radians, for a camera that looks in `start` at first."""
        return start + np.deg2rad(TURNS_DEG)

    def ask(self, answer: int) -> tuple[Any, ...]:
        """Return which direction each color's panel has, and question, answer and options of `PanelScene`."""
        return {"red": answer}, QUESTION, f"{TURNS_DEG[answer]:.0f}"

    def draw_path(self, frames: int, rng: np.random.Generator) -> tuple[RoomScene, Float64[np.ndarray, "T 4 4"]]:
        """Draw an empty room and a camera that turns in its middle, from the room's frame."""
        size = np.array([*rng.uniform(*SIDE_M, 2), rng.uniform(*CEILING_M)])
        yaw = 2 * np.pi * (draw_shares(frames // TEMPORAL_PATCH_SIZE, rng) + rng.random())
        center = np.tile(rng.uniform(-0.2, 0.2, 2), (len(yaw), 1))
        eyes = look_from(center, yaw, rng.uniform(*EYE_HEIGHT_M), TEMPORAL_PATCH_SIZE, rng)
        return plain_room(size, rng), eyes
