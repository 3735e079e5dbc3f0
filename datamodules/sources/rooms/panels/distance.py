"""How far is the red panel from where the video starts?"""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

import numpy as np
from jaxtyping import Float64

from datamodules.sources.rooms.panels.panel import hang, places_at, seen
from datamodules.sources.rooms.panels.task import PanelScene, PanelTask
from datamodules.sources.rooms.panels.tour import draw_room, draw_tour
from datamodules.sources.rooms.scene import RoomScene
from zoo.errors import InputError
from zoo.sequences.layout import TEMPORAL_PATCH_SIZE

DISTANCES_M = np.geomspace(1.3, 6.0, 16)  # the answers
SIZE_M = (0.5, 0.8)  # width and height
CENTER_ABOVE_EYE_M = 0.15  # at most, above or below the first camera
LOOK_DOWN = np.array([[1, 0, 0, 0], [0, 0, -1, 0], [0, 1, 0, 0], [0, 0, 0, 1]], float)
MAX_ATTEMPTS = 2000
QUESTION = "How far is the center of the red panel from the camera at the start of the video (in meters)?"


class PanelDistance(PanelTask):
    """The distance from the first camera to the center of a red panel on a wall.

    The images show in which frames the panel is seen, the cameras where these were taken. The answer is drawn first,
    and only rooms and camera paths that permit *every* answer are taken: the answer is independent of them by
    construction. The stations are visited in random order, so that the number of a frame says nothing either; the
    first one looks at the floor, or a panel that it sees would be near whatever the cameras.

    Attributes:
        frames_per_station: Adjacent frames with nearly the same view.
    """

    question_type: ClassVar[str] = "panel_distance"
    frames_per_station: ClassVar[int] = TEMPORAL_PATCH_SIZE

    def draw_path(self, frames: int, rng: np.random.Generator) -> tuple[RoomScene, Float64[np.ndarray, "T 4 4"]]:
        """Draw an empty room and a camera path, from the room's frame."""
        room = draw_room(rng)
        return room, draw_tour(room, frames, rng, self.frames_per_station)

    def draw(self, frames: int, K_px: Float64[np.ndarray, "3 3"], rng: np.random.Generator) -> PanelScene:
        """Draw the answer, a room with a camera path, and one of the places at that distance."""
        answer = rng.integers(len(DISTANCES_M))
        for _ in range(MAX_ATTEMPTS):
            room, camera_from_room = self.draw_path(frames, rng)
            start, others = np.split(camera_from_room, [self.frames_per_station])
            start[:] = LOOK_DOWN @ start
            eye = np.linalg.inv(start[0])[:3, 3]
            z = eye[2] + rng.uniform(-CENTER_ABOVE_EYE_M, CENTER_ABOVE_EYE_M)
            width, height = rng.uniform(*SIZE_M, 2)
            places = places_at(DISTANCES_M, eye, room, z, width)
            exists = ~np.isnan(places[..., 0])
            if not exists.any(1).all():
                continue
            at, on = np.nonzero(exists)
            visible = seen(places[exists], others[:: self.frames_per_station], K_px).any(0)
            if len(set(at[visible])) == len(DISTANCES_M):  # every answer, not this one: the room says nothing about it
                place = rng.choice(on[visible & (at == answer)])
                panel = hang("red", places[answer, place], place // 2, width, height)
                room = replace(room, things=(panel,))
                return PanelScene(room, camera_from_room, QUESTION, f"{DISTANCES_M[answer]:.1f}")
        name = type(self).__name__
        raise InputError(
            f"{name}: {MAX_ATTEMPTS} rooms in a row hide some of the places: take more --data.source.frames than"
            f" {frames}, or a wider --data.source.fov"
        )
