"""To which side is the second panel, seen from the first?"""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

import numpy as np
from jaxtyping import Float64

from datamodules.sources.rooms.panels.panel import seen, stand
from datamodules.sources.rooms.panels.rotation import AWAY_M, CENTER_ABOVE_EYE_M, SIZE_M, PanelRotation
from datamodules.sources.rooms.panels.task import PanelScene
from zoo.errors import InputError
from zoo.sequences.visual_grid import TEMPORAL_PATCH_SIZE

OPTIONS = ("to the left", "behind", "to the right")
TURN_DEG = ((100.0, 140.0), (150.0, 210.0), (220.0, 260.0))  # of each option: no view shows both panels whole
MAX_ATTEMPTS = 2000
QUESTION = "If one stands where the camera is and faces the red panel, where is the blue panel?"


class PanelDirection(PanelRotation):
    """Where a second panel is for someone who faces the first, with a camera that turns at one place.

    Unlike in `PanelRotation`, none of the two is the first view: the rotation *between* two views decides, whatever
    frame cameras are in. Images alone can't answer, as the views are in random order, nor translations.
    """

    question_type: ClassVar[str] = "panel_direction"
    version: ClassVar[int] = 1

    def draw(self, frames: int, K_px: Float64[np.ndarray, "3 3"], rng: np.random.Generator) -> PanelScene:
        """Draw the answer, a room with a turning camera, and both panels."""
        answer = rng.integers(len(OPTIONS))
        for _ in range(MAX_ATTEMPTS):
            room, camera_from_room = self.draw_path(frames, rng)
            first = rng.uniform(0, 2 * np.pi)
            turns = np.deg2rad(rng.uniform(*np.transpose(TURN_DEG)))
            directions = first + np.array([0.0, *turns])
            places = np.linalg.inv(camera_from_room[0])[:3, 3] + AWAY_M * np.stack(
                [np.cos(directions), np.sin(directions), np.zeros_like(directions)], 1
            )
            places[:, 2] += rng.uniform(-CENTER_ABOVE_EYE_M, CENTER_ABOVE_EYE_M, len(places))
            sizes = rng.uniform(*SIZE_M, (2, 2))
            if seen(places, camera_from_room[::TEMPORAL_PATCH_SIZE], K_px).any(0).all():  # every answer, not this one
                things = tuple(
                    stand(color, places[i], directions[i], *size)
                    for color, i, size in zip(("red", "blue"), (0, 1 + int(answer)), sizes, strict=True)
                )
                options = tuple(f"{letter}. {option}" for letter, option in zip("ABC", OPTIONS, strict=True))
                return PanelScene(replace(room, things=things), camera_from_room, QUESTION, "ABC"[answer], options)
        raise InputError(
            f"PanelDirection: {MAX_ATTEMPTS} rooms in a row hide a panel: take more --data.source.frames than {frames},"
            " or a wider --data.source.fov"
        )
