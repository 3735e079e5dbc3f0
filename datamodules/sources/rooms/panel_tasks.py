"""Questions about plain panels in empty rooms, whose answers need images, cameras, or both.

| task | asks | needs |
|---|---|---|
| `PanelDistance` | how far a panel is from where the video starts | images and whole poses |
| `PanelAnywhere` | the same before one wall, where the panel may be anywhere in a frame | the same, and the pixel |
| `PanelPairs` | the same with one frame per station | the same; merging two frames merges two views |
| `PanelTranslation` | the same along one wall that all cameras face | images and translations |
| `PanelRotation` | the direction of a panel from where the video starts to look | images and rotations |
| `PanelTurn` | the same with four views | the same, and the pixel |
| `PanelFreeTurn` | the same with views in any directions | the same, and more of the pose than its quarter turn |
| `PanelDwelling` | `PanelTurn` in a long video that shows the panel briefly | the same, and a sampler that finds it |
| `PanelDirection` | where a second panel is for someone who faces the first | images and rotations between views |
| `PanelIntrinsics` | how wide a panel is | images and focal lengths |
| `PanelParallax` | how far a wall is | two views of its panel, by triangulation |
| `PanelTwoViews` | the same, where only two views show the panel | the same, of these two views |
| `PanelKnownSize` | the same with panels of one size | images |
| `PanelOrder` | which panel is seen first | the order of the frames |
| `PanelMotion` | to which side a panel moves | the order of the frames |

A task draws its answer first, and then the room, the camera path and the sizes of the panels independently of it.
Neither the text nor the cameras therefore contain anything about the answer. The camera visits stations, places where
it takes a temporal patch of frames with nearly the same view. Stations are visited in random order, so that a frame's
number tells nothing about its place. Lengths are in meters.

`PanelDistance`, `PanelRotation` and `PanelParallax` remain for studies that were trained on them. A rule that lacks
what the task is about goes far in them, so new headlines are on `PanelAnywhere`, `PanelTurn`, `PanelFreeTurn` and
`PanelTwoViews`. Each task states in `oracles` what such rules know, and a test reports their scores beside the model's.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import replace
from typing import Any, ClassVar, NamedTuple

import numpy as np
from jaxtyping import Float64

from datamodules.sources.rooms import panel_oracles as known
from datamodules.sources.rooms.layout import look
from datamodules.sources.rooms.panel_layout import (
    CEILING_M,
    EYE_HEIGHT_M,
    HALL_M,
    INSET_M,
    THICKNESS_M,
    draw_room,
    draw_shares,
    draw_tour,
    hang,
    look_from,
    places_at,
    places_towards,
    plain_room,
    seen,
    stand,
)
from datamodules.sources.rooms.panel_oracles import Oracles, RoomVideo, Sight, log, sight
from datamodules.sources.rooms.questions import choice
from datamodules.sources.rooms.scene import RoomScene, to_vector
from zoo.benchmarks import Benchmark, PanelBench
from zoo.configuration import Configurable
from zoo.errors import InputError
from zoo.sequences.layout import TEMPORAL_PATCH_SIZE

MAX_ATTEMPTS = 2000  # number of rooms to draw until one permits every answer


class PanelScene(NamedTuple):
    """A room with its camera path, and its question.

    Attributes:
        room: The room and its panels.
        camera_from_room: Poses from the room's frame (OpenCV axes, meters).
        question: The question, without its options.
        ground_truth: A number or the letter of an option.
        options: Options of a multiple-choice question.
    """

    room: RoomScene
    camera_from_room: Float64[np.ndarray, "T 4 4"]
    question: str
    ground_truth: str
    options: tuple[str, ...] = ()


class PanelTask(Configurable, ABC):
    """A question about panels. A new task is a subclass with a `question_type` and `draw`.

    Attributes:
        question_type: A type of `benchmark`.
        question: The text.
        benchmark: Scores the answers. A subclass of `PanelBench` adds question types.
        version: Increase it with every change to the scenes or the question, so that rooms are rendered again.
    """

    question_type: ClassVar[str]
    question: ClassVar[str]
    benchmark: ClassVar[Benchmark] = PanelBench()
    version: ClassVar[int] = 1

    @abstractmethod
    def draw(self, frames: int, K_px: Float64[np.ndarray, "3 3"], rng: np.random.Generator) -> PanelScene:
        """Draw a room, its camera path and its question.

        Args:
            frames: Frames of the video.
            K_px: Intrinsics. The principal point is the center of a square frame.
            rng: Random generator.

        Raises:
            InputError: No room fits the settings.
        """

    def oracles(self, room: RoomScene, video: RoomVideo) -> Oracles:
        """Return what each oracle knows about a scene, by its name in `panel_oracles`.

        Args:
            room: The room and its panels.
            video: The video. Its `given` poses are wrong, or missing, in a test with camera errors.
        """
        return {}

    def true_answer(self, room: RoomScene, video: RoomVideo) -> float:
        """Return the answer, not rounded, that follows from the panel's place in the frames and the told cameras.

        Args:
            room: The room and its panels.
            video: The true cameras of the frames, and the told ones (`given_from_room`).

        Raises:
            InputError: The answers of this task are not continuous.
        """
        raise InputError(f"{type(self).__name__} has no continuous answer")


def hidden_panel(task: PanelTask, frames: int) -> InputError:
    """Return the error of a task that finds no room in which every possible answer is visible."""
    return InputError(
        f"{type(task).__name__}: {MAX_ATTEMPTS} rooms in a row hide a panel: take more --data.source.frames than"
        f" {frames}, or a wider --data.source.fov"
    )


class PanelDistance(PanelTask):
    """The distance from the first camera to the center of a red panel on a wall.

    The images show in which frames the panel is visible. The cameras tell where these frames were taken. Only rooms and
    camera paths that permit *every* answer are used, so that they are independent of the answer. The first station
    looks at the floor: a panel that it sees would be near, whatever the cameras say.

    Attributes:
        frames_per_station: Adjacent frames with nearly the same view.
        distances_m: The possible answers.
        size_m: Range of the panel's width and height.
        center_above_eye_m: Largest height of the panel's center above or below the first camera.
        look_down: Rotation that lets the first station look at the floor.
    """

    question_type: ClassVar[str] = "panel_distance"
    question: ClassVar[str] = (
        "How far is the center of the red panel from the camera at the start of the video (in meters)?"
    )
    frames_per_station: ClassVar[int] = TEMPORAL_PATCH_SIZE
    distances_m: ClassVar[np.ndarray] = np.geomspace(1.3, 6.0, 16)
    size_m: ClassVar[tuple[float, float]] = (0.5, 0.8)
    center_above_eye_m: ClassVar[float] = 0.15
    look_down: ClassVar[np.ndarray] = np.array([[1, 0, 0, 0], [0, 0, -1, 0], [0, 1, 0, 0], [0, 0, 0, 1]], float)

    def draw_path(self, frames: int, rng: np.random.Generator) -> tuple[RoomScene, Float64[np.ndarray, "T 4 4"]]:
        """Draw an empty room and a camera path, from the room's frame."""
        room = draw_room(rng)
        return room, draw_tour(room, frames, rng, self.frames_per_station)

    def draw(self, frames: int, K_px: Float64[np.ndarray, "3 3"], rng: np.random.Generator) -> PanelScene:
        """Draw the answer, a room with a camera path, and one of the places at that distance."""
        answer = rng.integers(len(self.distances_m))
        for _ in range(MAX_ATTEMPTS):
            room, camera_from_room = self.draw_path(frames, rng)
            start, others = np.split(camera_from_room, [self.frames_per_station])
            start[:] = self.look_down @ start
            eye = np.linalg.inv(start[0])[:3, 3]
            z = eye[2] + rng.uniform(-self.center_above_eye_m, self.center_above_eye_m)
            width, height = rng.uniform(*self.size_m, 2)
            places = places_at(self.distances_m, eye, room, z, width)
            exists = ~np.isnan(places[..., 0])
            if not exists.any(1).all():
                continue
            at, on = np.nonzero(exists)
            visible = seen(places[exists], others[:: self.frames_per_station], K_px).any(0)
            if len(set(at[visible])) == len(self.distances_m):  # every answer is possible, so the room reveals none
                place = rng.choice(on[visible & (at == answer)])
                panel = hang("red", places[answer, place], place // 2, width, height)
                room = replace(room, things=(panel,))
                return PanelScene(room, camera_from_room, self.question, f"{self.distances_m[answer]:.1f}")
        raise hidden_panel(self, frames)

    def oracles(self, room: RoomScene, video: RoomVideo) -> Oracles:
        """Know the pose of the frame that shows the panel best, and with its pixel the panel's place."""
        view = sight(room, video, start_frames=self.frames_per_station)
        return {
            known.WHICH_FRAME: view.pose(view.best)[:1],
            known.POSE: view.pose(view.best),
            known.POSES: view.all_poses(self.frames_per_station),
            known.IMAGES: view.images(),
            known.PIXEL: [log(np.linalg.norm(self.locate(view, view.best)))],
        }

    def locate(self, view: Sight, frame: int) -> Float64[np.ndarray, " 3"]:
        """Return the panel's place in the first camera's frame, about as far from the frame's camera as the wall is."""
        return view.start_from_camera[frame, :3, 3] + np.mean(INSET_M) * view.ray(frame)


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

    def locate(self, view: Sight, frame: int) -> Float64[np.ndarray, " 3"]:
        """Return the place where the panel's ray meets the wall, which is above the first camera's downward view."""
        center, ray = view.start_from_camera[frame, :3, 3], view.ray(frame)
        return center - (self.start_to_wall_m + center[1]) / ray[1] * ray


class PanelRotation(PanelTask):
    """The direction of a panel relative to the first view, in degrees to the left, for a camera that turns.

    The panel stands in the room, perpendicular to its direction from the camera. Views are spread evenly over all
    directions. All cameras have nearly the same center, so rotations decide and translations can't. If an encoding of
    rotations is as good as one of whole poses, translations cost nothing where there are none. If an encoding of
    translations beats the images, it contains rotations.

    Attributes:
        answers: Number of possible answers.
        turns_deg: The possible answers: directions of a panel that the first view does not show.
        frames_per_station: Adjacent frames with nearly the same view.
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
    turns_deg: ClassVar[np.ndarray] = np.geomspace(75, 285, 16).round()
    answers: ClassVar[int] = len(turns_deg)
    frames_per_station: ClassVar[int] = TEMPORAL_PATCH_SIZE
    side_m: ClassVar[tuple[float, float]] = (3.5, 4.0)
    size_m: ClassVar[tuple[float, float]] = (0.6, 0.8)
    away_m: ClassVar[float] = 1.2
    center_above_eye_m: ClassVar[float] = 0.2

    def draw(self, frames: int, K_px: Float64[np.ndarray, "3 3"], rng: np.random.Generator) -> PanelScene:
        """Draw the answer, a room with a turning camera, and the panels in the directions of that answer."""
        answer = int(rng.integers(self.answers))
        for _ in range(MAX_ATTEMPTS):
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

    def oracles(self, room: RoomScene, video: RoomVideo) -> Oracles:
        """Know how far the camera has turned in the frame that shows the panel best, and with its pixel the answer."""
        view = sight(room, video, start_frames=self.frames_per_station)
        return {
            known.POSE: [view.turn(view.best, to_panel=False)],
            known.POSES: [view.turn(view.best, to_panel=False), *view.all_poses(self.frames_per_station)],
            known.IMAGES: view.images(),
            known.PIXEL: [view.turn(view.best, to_panel=True)],
        }

    def true_answer(self, room: RoomScene, video: RoomVideo) -> float:
        """Return the turn to the panel in degrees, see `PanelTask`."""
        view = sight(room, video, start_frames=self.frames_per_station)
        return view.turn(view.best, to_panel=True)

    def draw_directions(self, start: float, rng: np.random.Generator) -> Float64[np.ndarray, " n"]:
        """Return the directions in which a panel may stand, in radians. `start` is the camera's first direction."""
        return start + np.deg2rad(self.turns_deg)

    def answer_with(self, answer: int) -> tuple[Any, ...]:
        """Return the direction index of each color's panel, the ground truth, and for multiple choice the options."""
        return {"red": answer}, f"{self.turns_deg[answer]:.0f}"

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

    turns_deg: ClassVar[np.ndarray] = np.geomspace(72, 288, 16).round()
    answers: ClassVar[int] = len(turns_deg)
    frames_per_station: ClassVar[int] = 4
    size_m: ClassVar[tuple[float, float]] = (0.45, 0.6)


class PanelFreeTurn(PanelTurn):
    """`PanelTurn` whose views look in any directions, so that the answer needs the pose itself.

    In `PanelTurn` the quarter of each turn and the pixel nearly are the answer (0.90). Here they score 0.79. With more
    views the poses tell more without the pixel, so choose `--data.source.frames 12 --data.num_frames 12`: 0.86.
    """

    version: ClassVar[int] = 1
    frames_per_station: ClassVar[int] = TEMPORAL_PATCH_SIZE

    def draw_yaw(self, stations: int, rng: np.random.Generator) -> Float64[np.ndarray, " n"]:
        """Draw the direction of each station in plan, in radians, independently of the others."""
        return rng.uniform(0, 2 * np.pi, stations)

    def oracles(self, room: RoomScene, video: RoomVideo) -> Oracles:
        """Know what they know in `PanelTurn`, or the pixel and the quarter of the turn."""
        view = sight(room, video, start_frames=self.frames_per_station)
        return {**super().oracles(room, video), known.QUARTER: [view.quarter_and_bearing(view.best)]}


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


class PanelIntrinsics(PanelTask):
    """The width of a panel that cameras of unknown field of view see from a known distance.

    The camera stands still before a large plain wall and sees the whole panel. The width is the angle between two
    pixels, times the distance, so it requires K. The panel's height and place are drawn in pixels, and nothing else is
    visible: a thing of known size, or a camera that moves by a known amount, would reveal the field of view. Only the
    widths reveal a little, because a panel that fills the frame is more likely a wide one. Choose a range of focal
    lengths much wider than the range of widths: `--data.source.fov [35,110]`.

    An encoding without K (GTA) can't be better than images alone, because the camera stands still and relative poses
    are the identity. If PRoPE is better, it uses K. A model that is trained on one range and tested on another shows
    whether it has learned the rule. `WrongFocalLength` should shift its answers by as much as the focal length.

    Attributes:
        widths_m: The possible answers.
        to_wall_m: Distance of the camera from the wall.
        pattern_m: Unit of the wall's pattern, so large that no camera sees the pattern.
        frame_px: Side of a frame to which the next two attributes refer.
        height_px: Range of the panel's height.
        off_center_px: Largest distance of the panel from the center of the frame.
    """

    question_type: ClassVar[str] = "panel_width"
    question: ClassVar[str] = "What is the width of the red panel, measured in centimeters?"
    version: ClassVar[int] = 3
    widths_m: ClassVar[np.ndarray] = np.geomspace(0.28, 0.7, 16)
    to_wall_m: ClassVar[float] = 1.5
    pattern_m: ClassVar[float] = 1000.0
    frame_px: ClassVar[int] = 56
    height_px: ClassVar[tuple[float, float]] = (6.0, 30.0)
    off_center_px: ClassVar[float] = 4.0

    def draw(self, frames: int, K_px: Float64[np.ndarray, "3 3"], rng: np.random.Generator) -> PanelScene:
        """Draw the answer, the panel, and a camera before it."""
        width = rng.choice(self.widths_m)
        meters = self.to_wall_m * 2 * K_px[0, 2] / self.frame_px / K_px[0, 0]  # size of a pixel on the wall
        across, up = meters * rng.uniform(-self.off_center_px, self.off_center_px, 2)
        height = meters * rng.uniform(*self.height_px)
        room = plain_room(np.full(3, HALL_M), rng, self.pattern_m)
        eye = np.array([0.0, self.to_wall_m - HALL_M / 2, HALL_M / 2])
        camera_from_room = look(np.tile(eye, (frames, 1)), *np.tile([[-np.pi / 2], [0], [0]], frames))
        center = np.array([across, (THICKNESS_M - HALL_M) / 2, HALL_M / 2 + up])
        room = replace(room, things=(hang("red", center, 2, width, height),))
        return PanelScene(room, camera_from_room, self.question, f"{100 * width:.0f}")

    def oracles(self, room: RoomScene, video: RoomVideo) -> Oracles:
        """Know the focal length, the panel's width and height in half frames, or the width in focal lengths."""
        view = sight(room, video)
        width = log(view.size[0] / view.center[0, 2])
        return {known.FOCAL_LENGTH: [log(video.half_view)], known.IMAGES: view.images(), known.PIXEL: [width]}


class PanelParallax(PanelTask):
    """The distance of a wall, which requires triangulation: two views of its panel and their cameras.

    Panel, wall and lamp are drawn in units of the distance, so that an image looks the same at any distance. The path
    is in meters and independent of the distance. Each station turns by a random angle, which hides a part of the
    parallax from models without cameras. The spread of the panel's places in the images still reveals a little, and
    together with the length of the path more. `FramesOnOtherCameras` keeps both, so a model has triangulated if its own
    score exceeds its score with cameras exchanged among the frames.

    Attributes:
        distances_m: The possible answers.
        path_m: Range of the length of the camera's path.
        turn_deg: Largest turn of a station, more than the panel's parallax between two stations.
        relative_size: Range of the panel's width and height, in units of the distance.
        relative_aside: Largest distance of the panel from the middle of the path, in units of the distance.
        relative_lamp: Ranges of the lamp's position relative to the wall before the path, in units of the distance.
        behind_m: Distance from the cameras to the middle of the hall.
    """

    question_type: ClassVar[str] = "panel_distance"
    question: ClassVar[str] = "How far is the wall with the red panel from the camera (in meters)?"
    version: ClassVar[int] = 2
    distances_m: ClassVar[np.ndarray] = np.geomspace(1.5, 4.5, 12)
    path_m: ClassVar[tuple[float, float]] = (0.9, 3.6)
    turn_deg: ClassVar[float] = 15.0
    relative_size: ClassVar[tuple[float, float]] = (0.25, 0.4)
    relative_aside: ClassVar[float] = 0.2
    relative_lamp: ClassVar[tuple[tuple[float, float], ...]] = ((-1.0, 1.0), (1.0, 2.0), (0.5, 1.5))
    behind_m: ClassVar[float] = 16.5

    def draw(self, frames: int, K_px: Float64[np.ndarray, "3 3"], rng: np.random.Generator) -> PanelScene:
        """Draw the answer, a path along the wall, and the panel near its middle."""
        distance = self.distances_m[rng.integers(len(self.distances_m))]
        stations, eye = frames // TEMPORAL_PATCH_SIZE, HALL_M / 2
        x = (draw_shares(stations, rng) - 0.5) * np.exp(rng.uniform(*np.log(self.path_m)))
        yaw = np.deg2rad(self.turn_deg) * rng.uniform(-1, 1, stations) - np.pi / 2
        plan = np.column_stack([x, np.full(stations, -self.behind_m)])
        camera_from_room = look_from(plan, yaw, eye, TEMPORAL_PATCH_SIZE, rng)
        depth = self.behind_m + distance
        room = plain_room(np.array([HALL_M, 2 * depth, HALL_M]), rng, distance)
        aside, above = distance * self.relative_aside * rng.uniform(-1, 1, 2)
        width, height = self.draw_size(distance, rng)
        panel = hang("red", np.array([aside, THICKNESS_M / 2 - depth, eye + above]), 2, width, height)
        light = self.draw_lamp(room, np.array([0.0, -depth, eye]), distance, rng)
        room = replace(room, things=(panel,), light=to_vector(light))
        return PanelScene(room, camera_from_room, self.question, f"{distance:.1f}")

    def draw_size(self, distance: float, rng: np.random.Generator) -> Float64[np.ndarray, " sides"]:
        """Draw width and height of the panel in meters."""
        return distance * rng.uniform(*self.relative_size, 2)

    def draw_lamp(
        self, room: RoomScene, wall: Float64[np.ndarray, " 3"], distance: float, rng: np.random.Generator
    ) -> Float64[np.ndarray, " 3"]:
        """Draw the lamp's place in units of the distance, because the shading reveals how far it is."""
        return wall + distance * rng.uniform(*np.transpose(self.relative_lamp))

    def oracles(self, room: RoomScene, video: RoomVideo) -> Oracles:
        """Know spreads of centers and of directions, without and with the knowledge which belong together.

        The distance is the spread of the centers of the frames that show the panel, over the spread of its directions.
        Without order, the directions are known with the cameras' rotations, but not from which center each was seen.
        """
        view = sight(room, video)
        eyes = np.linalg.inv(video.given)[:, :3, 3]
        frames = np.sort(view.posed)
        start, shown = eyes[view.has_camera][0, 0], eyes[frames, 0]
        stations = np.sort(eyes[::TEMPORAL_PATCH_SIZE, 0])  # NaN come last
        known_stations = stations[np.isfinite(stations)]
        path = [log(np.ptp(known_stations)), log(known_stations.std()), *(stations - start)]
        rays = np.einsum("tij,ti->tj", video.given[frames, :3, :3], view.center[frames])
        across = np.sort(-rays[:, 0] / rays[:, 1])
        directions = [log(np.ptp(across)), log(across.std()), across[0], across[-1]]
        ratios = [path[0] - directions[0], path[1] - directions[1]]
        return {
            known.POSE: [log(np.ptp(shown)), shown.min() - start, shown.max() - start],
            known.IMAGES: view.images(),
            known.SPREAD_AND_PATH: [log(np.ptp(view.pixel[view.frames, 0])), path[0]],
            known.WITHOUT_ORDER: ratios,
            known.ALL_WITHOUT_ORDER: [*ratios, *directions, *path, *view.images()],
            known.PIXEL: [log(np.ptp(shown)) - directions[0]],
        }


class PanelKnownSize(PanelParallax):
    """`PanelParallax` with panels of one size, so that a panel's size in an image tells the distance.

    Images alone answer it, up to the range of the fields of view. A model that predicts depth in training may learn it
    sooner. Cameras add no more than their focal length.

    Attributes:
        side_m: Width and height of every panel.
    """

    version: ClassVar[int] = 1
    side_m: ClassVar[float] = 1.0

    def draw_size(self, distance: float, rng: np.random.Generator) -> Float64[np.ndarray, " sides"]:
        """Return the size of all panels."""
        return np.array([self.side_m, self.side_m])

    def draw_lamp(
        self, room: RoomScene, wall: Float64[np.ndarray, " 3"], distance: float, rng: np.random.Generator
    ) -> Float64[np.ndarray, " 3"]:
        """Return the lamp of the hall. Its shading reveals the distance, which images may do in this task."""
        return np.array(room.light)


class PanelTwoViews(PanelParallax):
    """`PanelParallax` with a panel that shows from two stations only: nothing but their two rays tells the distance.

    In `PanelParallax` the spread of the panel's directions over the spread of the camera's path is the answer (0.99),
    without knowing which direction belongs to which center. The spread in the images with the path's length already
    answers 0.67, where the best constant has 0.51.

    Here the parallax, the panel's places and sizes in the two images, and the camera's path are drawn independently of
    the distance. The two stations are then those whose distance from each other is nearest to parallax times distance.
    The images alone, the cameras alone, and both without knowing which frame is from where therefore tell nothing. At
    the other stations the panel hangs at the other end of the hall, behind the camera. Cameras do not turn, the wall is
    plain, and its light is even, so that the panel is all that moves in the images.

    The answer is the distance between the two centers, divided by the difference of the panel's columns in units of the
    focal length. Centers without columns still answer above the best constant, because a wide baseline is more likely
    with a far wall. `FramesAtOtherCenters` should lower a model to the constant.

    Attributes:
        path_length_m: Length of the line on which the stations lie.
        parallax: Range of the difference of the panel's columns between its two frames, in focal lengths.
        within: Central share of the frame in which the panel's center lies.
        pattern_m: Unit of the wall's pattern, so large that no camera sees the pattern.
        lamp_m: Distance of the lamp from the wall, so large that the wall is evenly lit.
    """

    version: ClassVar[int] = 1
    relative_size: ClassVar[tuple[float, float]] = (0.4, 0.6)
    path_length_m: ClassVar[float] = 7.0
    parallax: ClassVar[tuple[float, float]] = (0.5, 1.3)
    within: ClassVar[float] = 0.75
    pattern_m: ClassVar[float] = 1000.0
    lamp_m: ClassVar[float] = 1e4

    def draw(self, frames: int, K_px: Float64[np.ndarray, "3 3"], rng: np.random.Generator) -> PanelScene:
        """Draw the answer, the path, the panel's places in two images, and the stations that have such a parallax."""
        distance = self.distances_m[rng.integers(len(self.distances_m))]
        depth = self.behind_m + distance
        stations, eye = frames // TEMPORAL_PATCH_SIZE, HALL_M / 2
        x = (draw_shares(stations, rng) - 0.5) * self.path_length_m
        plan = np.column_stack([x, np.full(stations, -self.behind_m)])
        camera_from_room = look_from(plan, np.full(stations, -np.pi / 2), eye, TEMPORAL_PATCH_SIZE, rng)
        parallax = np.exp(rng.uniform(*np.log(self.parallax)))
        aside, above = rng.uniform(-1, 1, 2)
        # 1. The two stations, and the panel on the wall before them.
        first, second = np.triu_indices(stations, 1)
        baselines = np.abs(x[first] - x[second])
        chosen = np.argmin(np.abs(np.log(baselines / (parallax * distance))))
        pair = [first[chosen], second[chosen]]
        reach = self.within * K_px[0, 2] / K_px[0, 0] - baselines[chosen] / distance / 2  # of the columns' mean
        place = x[pair].mean() + distance * reach * aside
        wall = THICKNESS_M / 2 - depth
        width, height = self.draw_size(distance, rng)
        up = eye + distance * self.relative_aside * above
        panel = hang("red", np.array([place, wall, up]), 2, width, height)
        # 2. At the other stations the panel hangs behind the camera.
        is_shown = np.isin(np.arange(stations), pair).repeat(TEMPORAL_PATCH_SIZE)
        panel = replace(panel, track=tuple((place, wall if shown else -wall, 0.0) for shown in is_shown.tolist()))
        room = plain_room(np.array([HALL_M, 2 * depth, HALL_M]), rng, self.pattern_m)
        room = replace(room, things=(panel,), light=(0.0, self.lamp_m, eye))
        return PanelScene(room, camera_from_room, self.question, f"{distance:.1f}")


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
        for _ in range(MAX_ATTEMPTS):
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
        raise InputError(f"PanelOrder: {MAX_ATTEMPTS} rooms in a row show no two panels one after the other")

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
