"""How far is a wall that all cameras face, whose panel they see from several places?"""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

import numpy as np
from jaxtyping import Float64

from datamodules.sources.rooms.panels.panel import THICKNESS_M, hang
from datamodules.sources.rooms.panels.task import PanelScene, PanelTask
from datamodules.sources.rooms.panels.tour import draw_shares, look_from, plain_room
from datamodules.sources.rooms.scene import RoomScene, to_vector
from zoo.sequences.layout import TEMPORAL_PATCH_SIZE

DISTANCES_M = np.geomspace(1.5, 4.5, 12)  # the answers
PATH_M = (0.9, 3.6)  # length of the camera's path
TURN_DEG = 15.0  # at most, of a station: more than the panel's parallax between two of them
SIZE, ASIDE = (0.25, 0.4), 0.2  # of the panel, and at most from the middle of the path: in units of the distance
LAMP = ((-1.0, 1.0), (1.0, 2.0), (0.5, 1.5))  # from the wall before the path, in units of the distance
HALL_M = 42.0  # length and height: no camera sees an end of the wall
BEHIND_M = 16.5  # from the cameras to the middle of the hall
QUESTION = "How far is the wall with the red panel from the camera (in meters)?"


class PanelParallax(PanelTask):
    """The distance of a wall, which only two views of its panel and their cameras tell: by triangulation.

    Panel, wall and lamp are drawn in units of the distance, so that an image looks alike at any of them; the path is in
    meters, and independent of it. Each station turns by a random angle, which hides a part of the parallax from images
    without cameras. The spread of the panel's places in the images still tells something, and with the length of the
    path more (see `FramesOnOtherCameras`, which keeps both): a model has triangulated if it exceeds what it scores with
    its own cameras exchanged among the frames.
    """

    question_type: ClassVar[str] = "panel_distance"
    version: ClassVar[int] = 2

    def draw(self, frames: int, K_px: Float64[np.ndarray, "3 3"], rng: np.random.Generator) -> PanelScene:
        """Draw the answer, a path along the wall, and the panel near its middle."""
        distance = DISTANCES_M[rng.integers(len(DISTANCES_M))]
        stations, eye = frames // TEMPORAL_PATCH_SIZE, HALL_M / 2
        x = (draw_shares(stations, rng) - 0.5) * np.exp(rng.uniform(*np.log(PATH_M)))
        yaw = np.deg2rad(TURN_DEG) * rng.uniform(-1, 1, stations) - np.pi / 2
        plan = np.column_stack([x, np.full(stations, -BEHIND_M)])
        camera_from_room = look_from(plan, yaw, eye, TEMPORAL_PATCH_SIZE, rng)
        depth = BEHIND_M + distance
        room = plain_room(np.array([HALL_M, 2 * depth, HALL_M]), rng, distance)
        aside, above = distance * ASIDE * rng.uniform(-1, 1, 2)
        width, height = self.draw_size(distance, rng)
        panel = hang("red", np.array([aside, THICKNESS_M / 2 - depth, eye + above]), 2, width, height)
        light = self.draw_lamp(room, np.array([0.0, -depth, eye]), distance, rng)
        room = replace(room, things=(panel,), light=to_vector(light))
        return PanelScene(room, camera_from_room, QUESTION, f"{distance:.1f}")

    def draw_size(self, distance: float, rng: np.random.Generator) -> Float64[np.ndarray, " sides"]:
        """Draw width and height of the panel in meters."""
        return distance * rng.uniform(*SIZE, 2)

    def draw_lamp(
        self, room: RoomScene, wall: Float64[np.ndarray, " 3"], distance: float, rng: np.random.Generator
    ) -> Float64[np.ndarray, " 3"]:
        """Draw the place of the lamp: the shading of a wall tells how far its lamp is."""
        return wall + distance * rng.uniform(*np.transpose(LAMP))
