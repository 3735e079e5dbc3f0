"""Tasks about the distance of a panel from where the video starts."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

import numpy as np
from jaxtyping import Float64

from datamodules.sources.rooms.panel_layout import (
    CEILING_M,
    EYE_HEIGHT_M,
    HALL_M,
    INSET_M,
    WALLS,
    draw_room,
    draw_shares,
    draw_tour,
    hang,
    look_from,
    places_at,
    plain_room,
    seen,
)
from datamodules.sources.rooms.panel_oracles import (
    Places,
    RoomVideo,
    panel_of,
    sight,
)
from datamodules.sources.rooms.panel_tasks.base import Answers, PanelPlace, PanelScene, hidden_panel
from datamodules.sources.rooms.scene import RoomScene


class PanelDistance(PanelPlace):
    """The distance from the first camera to the center of a red panel on a wall.

    The images show in which frames the panel is visible. The cameras tell where these frames were taken. Only rooms and
    camera paths that permit *every* answer are used, so that they are independent of the answer. The first station
    looks at the floor: a panel that it sees would be near, whatever the cameras say.

    Attributes:
        size_m: Range of the panel's width and height.
        center_above_eye_m: Largest height of the panel's center above or below the first camera.
        look_down: Rotation that lets the first station look at the floor.
    """

    question_type: ClassVar[str] = "panel_distance"
    question: ClassVar[str] = (
        "How far is the center of the red panel from the camera at the start of the video (in meters)?"
    )
    classes: ClassVar[Answers] = np.geomspace(1.3, 6.0, 16)
    size_m: ClassVar[tuple[float, float]] = (0.5, 0.8)
    center_above_eye_m: ClassVar[float] = 0.15
    look_down: ClassVar[np.ndarray] = np.array([[1, 0, 0, 0], [0, 0, -1, 0], [0, 1, 0, 0], [0, 0, 0, 1]], float)

    def draw_path(self, frames: int, rng: np.random.Generator) -> tuple[RoomScene, Float64[np.ndarray, "T 4 4"]]:
        """Draw an empty room and a camera path, from the room's frame."""
        room = draw_room(rng)
        return room, draw_tour(room, frames, rng, self.frames_per_station)

    def draw(self, frames: int, K_px: Float64[np.ndarray, "3 3"], rng: np.random.Generator) -> PanelScene:
        """Draw the answer, a room with a camera path, and one of the places at that distance."""
        answer = rng.integers(len(self.classes))
        for _ in range(self.max_attempts):
            room, camera_from_room = self.draw_path(frames, rng)
            start, others = np.split(camera_from_room, [self.frames_per_station])
            start[:] = self.look_down @ start
            eye = np.linalg.inv(start[0])[:3, 3]
            z = eye[2] + rng.uniform(-self.center_above_eye_m, self.center_above_eye_m)
            width, height = rng.uniform(*self.size_m, 2)
            places = places_at(self.classes, eye, room, z, width)
            exists = ~np.isnan(places[..., 0])
            if not exists.any(1).all():
                continue
            at, on = np.nonzero(exists)
            visible = seen(places[exists], others[:: self.frames_per_station], K_px).any(0)
            if len(set(at[visible])) == len(self.classes):  # every answer is possible, so the room reveals none
                place = rng.choice(on[visible & (at == answer)])
                panel = hang("red", places[answer, place], place // 2, width, height)
                room = replace(room, things=(panel,))
                return PanelScene(room, camera_from_room, self.question, self.write(self.classes[answer]))
        raise hidden_panel(self, frames)

    def write(self, answer: float) -> str:
        """Return the nearest class in meters."""
        return f"{self.classes[np.abs(self.classes - answer).argmin()]:.1f}"

    def places(self, room: RoomScene, video: RoomVideo) -> Places:
        """Return the places of each answer that some view shows. All answers are equally likely, and their places."""
        panel, told = panel_of(room), video.told(self.frames_per_station)
        eye, (width, height) = video.eye, (max(panel.size[:2]), panel.size[2])
        places = places_at(self.classes, eye, room, panel.center[2], width)
        views = told[self.frames_per_station :: self.frames_per_station]
        is_shown = np.zeros(places.shape[:2], bool)
        exists = ~np.isnan(places[..., 0])
        is_shown[exists] = seen(places[exists], views, video.intrinsics).any(0)
        at, on = np.nonzero(is_shown if is_shown.any() else exists)
        panels = [hang("red", places[i, k], k // 2, width, height) for i, k in zip(at, on, strict=True)]
        likely = 1 / np.bincount(at)[at]
        return Places([self.write(self.classes[i]) for i in at], likely / likely.sum(), panels)

    def true_answer(self, room: RoomScene, video: RoomVideo) -> float:
        """Return how far the point is where the ray through the panel's center meets the panel's wall."""
        panel, view = panel_of(room), sight(room, video, start_frames=self.frames_per_station)
        axis, room_from_camera = int(np.argmin(panel.size[:2])), np.linalg.inv(video.told(self.frames_per_station))
        center, ray = (
            room_from_camera[view.best, :3, 3],
            room_from_camera[view.best, :3, :3] @ [*view.pixel[view.best], 1],
        )
        place = center + (panel.center[axis] - center[axis]) / ray[axis] * ray
        return float(np.linalg.norm(place - video.eye))

    def moved(self, room: RoomScene, video: RoomVideo, answer: float) -> RoomScene | None:
        """Move the panel along its wall."""
        panel = panel_of(room)
        width, height = max(panel.size[:2]), panel.size[2]
        axis = int(np.argmin(panel.size[:2]))
        wall = WALLS.index((axis, int(np.sign(panel.center[axis]))))
        places = places_at(np.array([answer]), video.eye, room, panel.center[2], width)[0, 2 * wall : 2 * wall + 2]
        away = np.linalg.norm(places - panel.center, axis=1)
        if np.isnan(away).all():
            return None
        return replace(room, things=(hang("red", places[np.nanargmin(away)], wall, width, height),))


class PanelPairs(PanelDistance):
    """`PanelDistance` with one frame per station: adjacent frames show different walls.

    Merging consecutive frames puts two views into one token, with the camera of the first. Compare with
    `--data.frame_pairing Duplicate` and `keep` views. If merging does not lower the score, the token's camera needn't
    be exact, or the model separates the two views. If it does, diverse views must not be merged.
    """

    frames_per_station: ClassVar[int] = 1


class PanelTranslation(PanelDistance):
    """`PanelDistance` along one long wall that all cameras face: only their centers differ.

    The video starts at one end of the stations, so that the panel is always on the same side of the first camera.

    An encoding that claims to use rotations only must fail here. If an encoding of translations answers as well as one
    of whole poses, rotations add nothing for cameras that don't turn. If it answers worse, the encoding needs the
    rotation to express the translation.

    Attributes:
        gallery_length_m: Length of the room.
        gallery_width_m: Range of the room's width.
        walk_m: Length of the path, in the middle of the wall, so that no frame shows a corner.
    """

    version: ClassVar[int] = 2
    gallery_length_m: ClassVar[float] = 12.0
    gallery_width_m: ClassVar[tuple[float, float]] = (3.0, 4.0)
    walk_m: ClassVar[float] = 7.0

    def draw_path(self, frames: int, rng: np.random.Generator) -> tuple[RoomScene, Float64[np.ndarray, "T 4 4"]]:
        """Draw a gallery with stations along its wall: the first at one end, the others in random order."""
        size = np.array([self.gallery_length_m, rng.uniform(*self.gallery_width_m), rng.uniform(*CEILING_M)])
        x = (draw_shares(frames // self.frames_per_station, rng) - 0.5) * self.walk_m
        x = np.concatenate([x[[x.argmin()]], np.delete(x, x.argmin())])
        y = np.full_like(x, rng.uniform(*INSET_M) - size[1] / 2)
        yaw = np.full_like(x, -np.pi / 2)
        eyes = look_from(np.column_stack([x, y]), yaw, rng.uniform(*EYE_HEIGHT_M), self.frames_per_station, rng)
        return plain_room(size, rng), eyes


class PanelAnywhere(PanelDistance):
    """`PanelDistance` whose answer needs the panel's place in the frame: the pose of the frame alone says little.

    In `PanelDistance` and `PanelTranslation` the cameras stand about 1.1 m from the wall, so that the pose of the frame
    that shows the panel nearly is the answer (0.77 and 0.90, where the best constant has 0.40). Here cameras look from
    farther away and from varying distances, and turn by up to 15 degrees. There are few cameras, so two rarely see the
    same place. The panel may be anywhere in a frame, and its size is drawn.

    All cameras look at one wall of a hall. The video starts at a fixed distance from this wall, so that poses relative
    to the first camera tell where the wall is. The panel's place is the center of a camera plus its distance from the
    wall times the direction of the pixel. The stations and the panel lie on both sides of the start.

    Attributes:
        start_to_wall_m: Distance of the first camera from the wall.
        to_wall_m: Range of the other cameras' distances from the wall.
        turn_deg: Largest angle between a view and the normal of the wall.
        walk_m: Length of the line on which the stations lie. The video starts in its middle.
    """

    frames_per_station: ClassVar[int] = 4
    size_m: ClassVar[tuple[float, float]] = (0.8, 1.1)
    center_above_eye_m: ClassVar[float] = 0.1
    start_to_wall_m: ClassVar[float] = 1.2
    to_wall_m: ClassVar[tuple[float, float]] = (1.2, 2.0)
    turn_deg: ClassVar[float] = 15.0
    walk_m: ClassVar[float] = 12.0

    def draw_path(self, frames: int, rng: np.random.Generator) -> tuple[RoomScene, Float64[np.ndarray, "T 4 4"]]:
        """Draw a hall with stations before one wall: the first in the middle, the others in random order."""
        others = frames // self.frames_per_station - 1
        x = np.append(0.0, (draw_shares(others, rng) - 0.5) * self.walk_m)
        y = np.append(self.start_to_wall_m, rng.uniform(*self.to_wall_m, others)) - HALL_M / 2
        yaw = np.append(0.0, np.deg2rad(self.turn_deg) * rng.uniform(-1, 1, others)) - np.pi / 2
        eyes = look_from(np.column_stack([x, y]), yaw, HALL_M / 2, self.frames_per_station, rng)
        return plain_room(np.full(3, HALL_M), rng), eyes
