"""Tasks about the order of the frames."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

import numpy as np
from jaxtyping import Float64

from datamodules.sources.rooms import panel_oracles as known
from datamodules.sources.rooms.panel_layout import (
    EYE_HEIGHT_M,
    THICKNESS_M,
    draw_room,
    draw_tour,
    hang,
    look_from,
    places_towards,
    seen,
)
from datamodules.sources.rooms.panel_oracles import (
    Oracles,
    RoomVideo,
    sight,
)
from datamodules.sources.rooms.panel_tasks.base import PanelScene, PanelTask
from datamodules.sources.rooms.questions import choice
from datamodules.sources.rooms.scene import RoomScene
from zoo.errors import InputError
from zoo.sequences.layout import TEMPORAL_PATCH_SIZE


class PanelOrder(PanelTask):
    """Which of two panels is seen first. The order of the frames decides, whatever the cameras.

    Images alone answer it, so the task separates time from cameras. With constant time (`ConstantIndex`), a causal
    decoder still knows the order of its tokens, and Qwen3-VL reads the times in its prompt. If constant time does not
    lower the score, these suffice. If it does, the decoder uses the time positions. With `ShuffledFrames` any model
    must drop to chance.

    Attributes:
        colors: Colors of the panels.
        size_m: Range of a panel's width and height.
        clear: A panel is seen if its center lies within this many half frames.
        glimpse: A panel is not seen at all if its center lies beyond this many half frames.
    """

    question_type: ClassVar[str] = "panel_order"
    question: ClassVar[str] = "Which of these panels is seen first in the video?"
    version: ClassVar[int] = 2
    colors: ClassVar[tuple[str, str]] = ("red", "blue")
    size_m: ClassVar[tuple[float, float]] = (0.5, 0.7)
    clear: ClassVar[float] = 0.7
    glimpse: ClassVar[float] = 1.7

    def draw(self, frames: int, K_px: Float64[np.ndarray, "3 3"], rng: np.random.Generator) -> PanelScene:
        """Draw the answer, a tour, and two panels that are seen at different times."""
        answer = rng.integers(len(self.colors))
        for _ in range(self.max_attempts):
            room = draw_room(rng)
            camera_from_room = draw_tour(room, frames, rng)
            stations = camera_from_room[::TEMPORAL_PATCH_SIZE]
            chosen = rng.choice(len(stations), len(self.colors), replace=False)
            eyes, forward = np.linalg.inv(stations[chosen])[:, :3, [3, 2]].transpose(2, 0, 1)
            width, height = rng.uniform(*self.size_m, 2)
            places, walls = places_towards(np.arctan2(forward[:, 1], forward[:, 0]), eyes, room, width)
            visible, glimpsed = (seen(places, stations, K_px, within) for within in (self.clear, self.glimpse))
            first = visible.argmax(0)
            if visible.any(0).all() and (first == glimpsed.argmax(0)).all() and len(set(first)) == len(self.colors):
                colors = self.colors[answer], self.colors[1 - answer]
                in_time = zip(colors, np.argsort(first), strict=True)
                panels = [hang(color, places[i], walls[i], width, height) for color, i in in_time]
                answered = choice([f"{color} panel" for color in self.colors], f"{self.colors[answer]} panel")
                room = replace(room, things=tuple(panels))
                return PanelScene(room, camera_from_room, self.question, *answered)
        raise InputError(f"PanelOrder: {self.max_attempts} rooms in a row show no two panels one after the other")

    def oracles(self, room: RoomScene, video: RoomVideo) -> Oracles:
        """Know the panels in the images without or with the order of the frames."""
        views = [sight(room, video, color) for color in self.colors]
        first, second = (int(view.frames[0]) for view in views)
        return {
            known.IMAGES: [number for view in views for number in view.images()],
            known.IN_TIME: [float(first - second)],
        }


class PanelMotion(PanelTask):
    """To which side a panel moves before a still camera, which depends on a moving thing and the order of the frames.

    The panel rests while the two frames of a token are taken, so that no token contains a motion. Only the order of the
    tokens tells. See `PanelOrder` for what constant time and `ShuffledFrames` show. All cameras are the same and reveal
    nothing.

    Attributes:
        options: The possible answers.
        to_wall_m: Range of the camera's distance from the wall.
        size_m: Range of the panel's width and height.
        center_above_eye_m: Largest height of the panel's center above or below the camera.
        in_view: Half frames within which the center stays.
        way: Range of the distance that the panel moves, in units of half of the visible width.
    """

    question_type: ClassVar[str] = "panel_motion"
    question: ClassVar[str] = "To which side does the red panel move in the video?"
    version: ClassVar[int] = 2
    options: ClassVar[tuple[str, ...]] = ("to the left", "to the right")
    to_wall_m: ClassVar[tuple[float, float]] = (1.5, 2.5)
    size_m: ClassVar[tuple[float, float]] = (0.4, 0.7)
    center_above_eye_m: ClassVar[float] = 0.2
    in_view: ClassVar[float] = 0.8
    way: ClassVar[tuple[float, float]] = (1.0, 1.7)

    def draw(self, frames: int, K_px: Float64[np.ndarray, "3 3"], rng: np.random.Generator) -> PanelScene:
        """Draw the answer, a way along the wall, and the camera before it."""
        answer = rng.integers(len(self.options))
        stations = frames // TEMPORAL_PATCH_SIZE
        room = draw_room(rng)
        eye_height, to_wall = rng.uniform(*EYE_HEIGHT_M), rng.uniform(*self.to_wall_m)
        plan = np.tile([0.0, to_wall - room.size[1] / 2], (stations, 1))
        camera_from_room = look_from(plan, np.full(stations, -np.pi / 2), eye_height, TEMPORAL_PATCH_SIZE, rng)
        in_view = self.in_view * to_wall * K_px[0, 2] / K_px[0, 0]
        way = in_view * rng.uniform(*self.way)
        # x points to the left of the camera, which looks along -y
        x = np.linspace(0, way, stations) + rng.uniform(-in_view, in_view - way)
        x = (x if answer == 0 else x[::-1]).repeat(TEMPORAL_PATCH_SIZE)
        y = (THICKNESS_M - room.size[1]) / 2
        z = eye_height + rng.uniform(-self.center_above_eye_m, self.center_above_eye_m)
        panel = hang("red", np.array([x[0], y, z]), 2, *rng.uniform(*self.size_m, 2))
        panel = replace(panel, track=tuple((place, y, 0.0) for place in x.tolist()))
        answered = choice(self.options, self.options[answer])
        return PanelScene(replace(room, things=(panel,)), camera_from_room, self.question, *answered)

    def oracles(self, room: RoomScene, video: RoomVideo) -> Oracles:
        """Know the panel in the images without or with the order of the frames."""
        view = sight(room, video)
        return {known.IMAGES: view.images(), known.IN_TIME: [view.pixel[-1, 0] - view.pixel[0, 0]]}
