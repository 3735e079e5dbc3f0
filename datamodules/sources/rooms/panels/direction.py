"""To which side is the second panel, seen from the first?"""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
from jaxtyping import Float64

from datamodules.sources.rooms.panels.rotation import PanelRotation
from datamodules.sources.rooms.questions import choice

OPTIONS = ("to the left", "behind", "to the right")
TURN_DEG = ((100.0, 140.0), (150.0, 210.0), (220.0, 260.0))  # of each option: no view shows both panels whole
QUESTION = "If one stands where the camera is and faces the red panel, where is the blue panel?"


class PanelDirection(PanelRotation):
    """Where a second panel is for someone who faces the first, with a camera that turns at one place.

    Unlike in `PanelRotation`, none of the two is the first view: the rotation *between* two views decides, whatever
    frame cameras are in. Images alone can't answer, as the views are in random order, nor translations.
    """

    question_type: ClassVar[str] = "panel_direction"
    version: ClassVar[int] = 2
    answers: ClassVar[int] = len(OPTIONS)

    def draw_directions(self, start: float, rng: np.random.Generator) -> Float64[np.ndarray, " n"]:
        """Draw a direction of the red panel, and one of the blue panel for each answer; see `PanelRotation`."""
        turns = np.deg2rad(rng.uniform(*np.transpose(TURN_DEG)))
        return rng.uniform(0, 2 * np.pi) + np.array([0.0, *turns])

    def ask(self, answer: int) -> tuple[Any, ...]:
        return {"red": 0, "blue": 1 + answer}, QUESTION, *choice(OPTIONS, OPTIONS[answer])
