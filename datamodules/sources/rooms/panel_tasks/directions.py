"""Tasks about the direction of a panel, for a camera that turns."""

from __future__ import annotations

from dataclasses import replace
from math import comb
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Float64

from datamodules.sources.rooms import panel_oracles as known
from datamodules.sources.rooms.layout import look
from datamodules.sources.rooms.panel_layout import (
    CEILING_M,
    EYE_HEIGHT_M,
    GRAY,
    JITTER,
    SHAKE_DEG,
    draw_shares,
    look_from,
    plain_room,
    seen,
    stand,
)
from datamodules.sources.rooms.panel_oracles import (
    Oracles,
    Places,
    Posteriors,
    RoomVideo,
    direction_of,
    panel_of,
    sight,
)
from datamodules.sources.rooms.panel_tasks.base import (
    Answers,
    PanelPlace,
    PanelScene,
    PanelTask,
    hidden_panel,
)
from datamodules.sources.rooms.questions import choice
from datamodules.sources.rooms.scene import RoomScene
from zoo.errors import InputError
from zoo.sequences.layout import TEMPORAL_PATCH_SIZE

COARSE_DEG = 45.0  # to which an oracle rounds the direction of a view
GRID_DEG = 0.5  # steps of directions among which an oracle chooses, if all are possible


class PanelRotation(PanelPlace):
    """The direction of a panel relative to the first view, in degrees to the left, for a camera that turns.

    The panel stands in the room, perpendicular to its direction from the camera. Views are spread evenly over all
    directions. All cameras have nearly the same center, so rotations decide and translations can't. If an encoding of
    rotations is as good as one of whole poses, translations cost nothing where there are none. If an encoding of
    translations beats the images, it contains rotations.

    Attributes:
        classes: The possible answers: directions of a panel that the first view does not show.
        answers: Number of possible answers.
        side_m: Range of the room's length and width.
        size_m: Range of the panel's width and height.
        away_m: Horizontal distance of the panel from the camera.
        center_above_eye_m: Largest height of the panel's center above or below the camera.
    """

    question_type: ClassVar[str] = "panel_turn"
    question: ClassVar[str] = (
        "By how many degrees must the camera turn to the left from where it looks at the start of the video to face the"
        " red panel?"
    )
    version: ClassVar[int] = 3
    classes: ClassVar[Answers] = np.geomspace(75, 285, 16).round()
    answers: ClassVar[int] = len(classes)
    side_m: ClassVar[tuple[float, float]] = (3.5, 4.0)
    size_m: ClassVar[tuple[float, float]] = (0.6, 0.8)
    away_m: ClassVar[float] = 1.2
    center_above_eye_m: ClassVar[float] = 0.2

    def draw(self, frames: int, K_px: Float64[np.ndarray, "3 3"], rng: np.random.Generator) -> PanelScene:
        """Draw the answer, a room with a turning camera, and the panels in the directions of that answer."""
        answer = int(rng.integers(self.answers))
        for _ in range(self.max_attempts):
            room, camera_from_room = self.draw_path(frames, rng)
            start = np.linalg.inv(camera_from_room[0])
            directions = self.draw_directions(np.arctan2(start[1, 2], start[0, 2]), rng)
            away = self.away_m * np.stack([np.cos(directions), np.sin(directions), np.zeros_like(directions)], 1)
            places = start[:3, 3] + away
            places[:, 2] += rng.uniform(-self.center_above_eye_m, self.center_above_eye_m)
            width, height = rng.uniform(*self.size_m, 2)
            views = camera_from_room[:: self.frames_per_station]
            if seen(places, views, K_px).any(0).all():  # every answer is possible
                shown, *answered = self.answer_with(answer)
                things = [stand(color, places[i], directions[i], width, height) for color, i in shown.items()]
                room = replace(room, things=tuple(things))
                return PanelScene(room, camera_from_room, self.question, *answered)
        raise hidden_panel(self, frames)

    def write(self, answer: float) -> str:
        """Return the nearest class in degrees."""
        return f"{self.classes[np.abs(self.classes - answer).argmin()]:.0f}"

    def places(self, room: RoomScene, video: RoomVideo) -> Places:
        """Return one place for each answer. All are equally likely."""
        panels = [panel_of(self.moved(room, video, answer)) for answer in self.classes]
        return Places([self.write(each) for each in self.classes], np.full(len(panels), 1 / len(panels)), panels)

    def moved(self, room: RoomScene, video: RoomVideo, answer: float) -> RoomScene:
        """Move the panel around the camera."""
        panel, direction = panel_of(room), video.first_yaw + np.deg2rad(answer)
        place = video.eye + self.away_m * np.array([np.cos(direction), np.sin(direction), 0.0])
        place[2] = panel.center[2]
        return replace(room, things=(stand("red", place, direction, panel.size[1], panel.size[2]),))

    def true_answer(self, room: RoomScene, video: RoomVideo) -> float:
        """Return the direction of the panel as the told camera of its frame has it."""
        view = sight(room, video, start_frames=self.frames_per_station)
        place = np.linalg.inv(video.told(self.frames_per_station)[view.best]) @ [*view.center[view.best], 1.0]
        return float(np.rad2deg(direction_of(place[:3] - video.eye) - video.first_yaw) % 360)

    def posteriors(self, room: RoomScene, video: RoomVideo) -> Posteriors:
        """Know the poses without the pixel, the pixel without the poses, or both."""
        view, told = sight(room, video, start_frames=self.frames_per_station), video.told(self.frames_per_station)
        true_turn, turn = (
            np.rad2deg(direction_of(poses[view.best, 2, :3]) - video.first_yaw)
            for poses in (video.camera_from_room, told)
        )
        bearing = self.true_answer(room, video._replace(given_from_room=None)) - true_turn
        possible = self.possible(room, video)
        every = Places([self.write(each) for each in possible], np.full(len(possible), 1.0), ())
        turns = (possible - bearing) % 360
        likely = self.turn_density(turns, video)
        off = np.abs((turns - COARSE_DEG * np.round(turn / COARSE_DEG) + 180) % 360 - 180)
        coarse = likely if np.isnan(turn) else likely * (off <= COARSE_DEG / 2)
        found = {known.PLACE: every.posterior(likely), known.COARSE: every.posterior(coarse)}
        return {**super().posteriors(room, video), **found}

    def possible(self, room: RoomScene, video: RoomVideo) -> Answers:
        """Return answers before rounding, equally likely, one of which is true."""
        return self.classes

    def turn_density(self, turns: Answers, video: RoomVideo) -> Answers:
        """Return how likely a later view has turned by some angles in degrees, up to a factor."""
        views = self.views_of(len(video.camera_from_room))
        steps, most = np.arange(1, views)[:, None], JITTER + 2 * SHAKE_DEG * views / 360
        return np.maximum(0, 1 - np.abs(turns * views / 360 - steps) / most).sum(0)

    def views_of(self, frames: int) -> int:
        """Return the number of directions in a video."""
        return frames // self.frames_per_station

    def draw_directions(self, start: float, rng: np.random.Generator) -> Float64[np.ndarray, " n"]:
        """Return the directions in which a panel may stand, in radians. `start` is the camera's first direction."""
        return start + np.deg2rad(self.classes)

    def answer_with(self, answer: int) -> tuple[Any, ...]:
        """Return the direction index of each color's panel, the ground truth, and for multiple choice the options."""
        return {"red": answer}, self.write(self.classes[answer])

    def draw_path(self, frames: int, rng: np.random.Generator) -> tuple[RoomScene, Float64[np.ndarray, "T 4 4"]]:
        """Draw an empty room and a camera that turns in its middle, from the room's frame."""
        size = np.array([*rng.uniform(*self.side_m, 2), rng.uniform(*CEILING_M)])
        yaw = self.draw_yaw(frames // self.frames_per_station, rng)
        center = np.tile(rng.uniform(-0.2, 0.2, 2), (len(yaw), 1))
        eyes = look_from(center, yaw, rng.uniform(*EYE_HEIGHT_M), self.frames_per_station, rng)
        return plain_room(size, rng), eyes

    def draw_yaw(self, stations: int, rng: np.random.Generator) -> Float64[np.ndarray, " n"]:
        """Draw the direction of each station in plan, in radians: even steps, in random order."""
        return 2 * np.pi * (draw_shares(stations, rng) + rng.random())


class PanelTurn(PanelRotation):
    """`PanelRotation` whose answer needs the panel's place in the frame: the camera looks in four directions only.

    In `PanelRotation` eight views are spread over all directions, so that the turn of the views that show the panel
    nearly is the answer (0.96, where the best constant has 0.45). Here a view is about a quarter turn from the next,
    and the panel may be anywhere in it. The panel is smaller, so that no part of it is in the first view.
    """

    classes: ClassVar[Answers] = np.geomspace(72, 288, 16).round()
    answers: ClassVar[int] = len(classes)
    frames_per_station: ClassVar[int] = 4
    size_m: ClassVar[tuple[float, float]] = (0.45, 0.6)


class PanelFreeTurn(PanelTurn):
    """`PanelTurn` whose views look in any directions, so that the answer needs the pose itself.

    In `PanelTurn` the quarter of each turn plus the pixel nearly is the answer (0.90). Here this sum scores 0.79. With
    more views the poses tell more without the pixel, so choose `--data.source.frames 12 --data.num_frames 12`.
    """

    version: ClassVar[int] = 1
    frames_per_station: ClassVar[int] = TEMPORAL_PATCH_SIZE

    def draw_yaw(self, stations: int, rng: np.random.Generator) -> Float64[np.ndarray, " n"]:
        """Draw the direction of each station in plan, in radians, independently of the others."""
        return rng.uniform(0, 2 * np.pi, stations)

    def turn_density(self, turns: Answers, video: RoomVideo) -> Answers:
        """All directions are equally likely."""
        return np.ones_like(turns)


class PanelDwelling(PanelTurn):
    """`PanelTurn` in a longer video that shows the panel briefly: with few frames the sampler decides what is seen.

    The camera dwells on its first view. In one short sweep it looks in seven other directions, in random order and for
    two frames each. About four of 64 frames show the panel's center. Eight frames at even steps miss them in half of
    the videos. Eight frames of distant poses are all eight directions, so that each token merges two of them.

    The question refers to the start of the video, but a sampler need not keep a frame of the first view. The sweep ends
    in the last quarter of the video, so that most frames of that view come before it.

    Attributes:
        views: Number of directions.
    """

    frames_per_station: ClassVar[int] = TEMPORAL_PATCH_SIZE
    views: ClassVar[int] = 8

    def draw_path(self, frames: int, rng: np.random.Generator) -> tuple[RoomScene, Float64[np.ndarray, "T 4 4"]]:
        """Draw an empty room and a camera in its middle that dwells on one view, from the room's frame."""
        room, turning = super().draw_path(self.views * self.frames_per_station, rng)
        if frames < len(turning):
            raise InputError(f"PanelDwelling: --data.source.frames {frames}: at least {len(turning)}")
        first, sweep = np.split(turning, [self.frames_per_station])
        dwelling = first[np.arange(frames - len(sweep)) % len(first)]
        earliest = max(len(first), len(dwelling) - frames // 4)
        before, after = np.split(dwelling, [rng.integers(earliest, len(dwelling) + 1)])
        return room, np.concatenate([before, sweep, after])

    def views_of(self, frames: int) -> int:
        """Return the number of directions in a video."""
        return self.views


class PanelGlimpse(PanelRotation):
    """The direction of a small panel that one view shows, where seeing tells nothing but the panel's place in it.

    In `PanelTurn` and `PanelFreeTurn` the images tell more: several views show a part of a panel, and walls have their
    own grays, by which views could be stitched. Here views do not overlap, all surfaces have one gray, and the light is
    even. A view is therefore one color, but for the panel. The first view shows nothing. One of the others shows the
    panel, at least its own width away from each border, and no other view shows any part of it.

    The direction of the view and the place of the panel in it are drawn independently. The cameras alone tell that the
    panel is in one of the later views, so their best answer is better than a constant.

    Choose a field of view so narrow that a degree is a pixel, `--data.source.fov [50,55]`, as `data_glimpse.yaml` does.

    Attributes:
        panel_deg: Width and height of the panel.
        between_deg: Smallest angle between two neighboring views.
        step_deg: Answers are multiples of this angle.
        swept_deg: Angle over which `sweep` spreads.
        lamp_m: The lamp's distance along each axis, so large that its light is even, and equal on all surfaces. The
            shade of a panel tells its direction in the room, whose own direction is drawn at random.
    """

    version: ClassVar[int] = 1
    frames_per_station: ClassVar[int] = 4
    panel_deg: ClassVar[float] = 6.0
    between_deg: ClassVar[float] = 1.0
    step_deg: ClassVar[int] = 1
    swept_deg: ClassVar[float] = 16.0
    lamp_m: ClassVar[float] = 1e9

    def draw(self, frames: int, K_px: Float64[np.ndarray, "3 3"], rng: np.random.Generator) -> PanelScene:
        """Draw the directions of the views, the one that shows the panel, and the panel's place in it."""
        half_view, stations = K_px[0, 2] / K_px[0, 0], frames // self.frames_per_station
        reach, spare = self.reach_deg(half_view), self.spare_deg(half_view, stations)
        if spare < 0 or reach < 0:
            raise InputError(f"PanelGlimpse: {stations} views overlap, or hide the panel: --data.source.fov [50,55]")
        # 1. The views: all directions in which they do not overlap are equally likely.
        apart = (360 - spare) / stations + spare * rng.dirichlet(np.ones(stations))
        turns = np.append(0.0, rng.permutation(apart.cumsum()[:-1]))
        start = rng.uniform(0, 2 * np.pi)
        # 2. The room, and level cameras at one point.
        size = np.array([*rng.uniform(*self.side_m, 2), rng.uniform(*CEILING_M)])
        eye = np.append(rng.uniform(-0.2, 0.2, 2), rng.uniform(*EYE_HEIGHT_M))
        yaw = (start + np.deg2rad(turns)).repeat(self.frames_per_station)
        camera_from_room = look(np.tile(eye, (len(yaw), 1)), yaw, *np.zeros((2, len(yaw))))
        # 3. The panel.
        bearing = rng.uniform(-reach, reach)
        answer = turns[rng.integers(1, stations)] + bearing
        above = np.tan(np.deg2rad(rng.uniform(-reach, reach))) * np.cos(np.deg2rad(bearing))
        side = 2 * self.away_m * np.tan(np.deg2rad(self.panel_deg / 2))
        direction = start + np.deg2rad(answer)
        place = eye + self.away_m * np.array([np.cos(direction), np.sin(direction), above])
        room = replace(self.even_room(size, rng), things=(stand("red", place, direction, side, side),))
        return PanelScene(room, camera_from_room, self.question, self.write(answer))

    def even_room(self, size: Float64[np.ndarray, " 3"], rng: np.random.Generator) -> RoomScene:
        """Draw a room whose surfaces have one color in an even light."""
        room, gray = plain_room(size, rng), rng.uniform(*GRAY)
        surfaces = tuple(replace(surface, colors=((gray,) * 3,) * 2) for surface in room.surfaces)
        return replace(room, surfaces=surfaces, light=(self.lamp_m,) * 3)

    def reach_deg(self, half_view: float) -> float:
        """Return how far the panel's center may be from the middle of a view. `half_view` is in focal lengths."""
        return float(np.rad2deg(np.arctan(half_view))) - 1.5 * self.panel_deg

    def spare_deg(self, half_view: float, stations: int) -> float:
        """Return the sum of the angles between neighboring views, beyond what they need."""
        return 360 - stations * (2 * float(np.rad2deg(np.arctan(half_view))) + self.between_deg)

    def write(self, answer: float) -> str:
        """Round an answer in degrees."""
        return str(self.step_deg * round(answer / self.step_deg))

    def possible(self, room: RoomScene, video: RoomVideo) -> Answers:
        """Return a grid of all angles."""
        return self.true_answer(room, video._replace(given_from_room=None)) % GRID_DEG + np.arange(0, 360, GRID_DEG)

    def places(self, room: RoomScene, video: RoomVideo) -> Places:
        """Return places in each of the later views, as far as their cameras are told. All are equally likely."""
        reach, told = self.reach_deg(video.half_view), video.told(self.frames_per_station)
        later = told[self.frames_per_station :: self.frames_per_station, 2, :3]
        turns = np.rad2deg([direction_of(each) - video.first_yaw for each in later])
        answers = self.possible(room, video)
        off = np.abs((answers - turns[np.isfinite(turns), None] + 180) % 360 - 180)
        is_in_view = (off <= reach).any(0)
        answers = answers[is_in_view] if is_in_view.any() else answers
        panels = [panel_of(self.moved(room, video, answer)) for answer in answers]
        return Places([self.write(each) for each in answers], np.full(len(answers), 1 / len(answers)), panels)

    def turn_density(self, turns: Answers, video: RoomVideo) -> Answers:
        """Return the density of the direction of a view: the first, second, ... to the left of the first."""
        views = self.views_of(len(video.camera_from_room))
        spare, places = self.spare_deg(video.half_view, views), np.arange(1, views)
        share = (turns - places[:, None] * (360 - spare) / views) / spare  # one row for each place
        inside = np.clip(share, 0, 1).T
        ways = np.array([comb(views - 2, place - 1) for place in places.tolist()])
        density = ways * inside ** (places - 1) * (1 - inside) ** (views - 1 - places)
        return (density * (inside == share.T)).sum(1)

    def sweep(self, room: RoomScene, video: RoomVideo, count: int, rng: np.random.Generator) -> Answers:
        """Spread over a part of the view that shows the panel."""
        reach, answer = self.reach_deg(video.half_view), self.true_answer(room, video)
        view = sight(room, video, start_frames=self.frames_per_station)
        middle = answer + np.rad2deg(np.arctan(view.pixel[view.best, 0]))
        spread = min(self.swept_deg, 2 * reach)
        return middle + rng.uniform(-reach, reach - spread) + spread * np.linspace(0, 1, count)


class PanelDirection(PanelRotation):
    """Where a second panel is for someone who faces the first, with a camera that turns at one place.

    Unlike in `PanelRotation`, neither panel is in the first view. The rotation *between* two views decides, in any
    world frame. Images alone can't answer, because the views are in random order. Translations can't either.

    Attributes:
        options: The possible answers.
        turn_range_deg: For each option, range of the angle from the first panel to the second, so large that no view
            shows both panels completely.
    """

    question_type: ClassVar[str] = "panel_direction"
    question: ClassVar[str] = "If one stands where the camera is and faces the red panel, where is the blue panel?"
    version: ClassVar[int] = 2
    options: ClassVar[tuple[str, ...]] = ("to the left", "behind", "to the right")
    answers: ClassVar[int] = len(options)
    turn_range_deg: ClassVar[tuple[tuple[float, float], ...]] = ((100.0, 140.0), (150.0, 210.0), (220.0, 260.0))

    def draw_directions(self, start: float, rng: np.random.Generator) -> Float64[np.ndarray, " n"]:
        """Draw a direction of the red panel, and one of the blue panel for each answer; see `PanelRotation`."""
        turns = np.deg2rad(rng.uniform(*np.transpose(self.turn_range_deg)))
        return rng.uniform(0, 2 * np.pi) + np.array([0.0, *turns])

    posteriors, true_answer = PanelTask.posteriors, PanelTask.true_answer
    moved, sweep = PanelTask.moved, PanelTask.sweep  # type: ignore[assignment]

    def answer_with(self, answer: int) -> tuple[Any, ...]:
        return {"red": 0, "blue": 1 + answer}, *choice(self.options, self.options[answer])

    def oracles(self, room: RoomScene, video: RoomVideo) -> Oracles:
        """Know the turn between the frames that show the panels best, and with the pixels between the panels."""
        views = [sight(room, video, color) for color in ("red", "blue")]

        def turn_between(*, panels: bool) -> list[float]:
            red, blue = (view.turn(view.best, to_panel=panels) for view in views)
            return [(blue - red) % 360]

        return {
            known.POSE: turn_between(panels=False),
            known.IMAGES: [number for view in views for number in view.images()],
            known.PIXEL: turn_between(panels=True),
        }
