"""Tasks about sizes and distances that need focal lengths or two views of one panel."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

import numpy as np
from jaxtyping import Float64

from datamodules.sources.rooms import panel_oracles as known
from datamodules.sources.rooms.layout import look
from datamodules.sources.rooms.panel_layout import (
    HALL_M,
    THICKNESS_M,
    draw_shares,
    hang,
    look_from,
    plain_room,
)
from datamodules.sources.rooms.panel_oracles import (
    Oracles,
    RoomVideo,
    log,
    sight,
)
from datamodules.sources.rooms.panel_tasks.base import PanelScene, PanelTask
from datamodules.sources.rooms.scene import RoomScene, to_vector
from zoo.sequences.layout import TEMPORAL_PATCH_SIZE


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
