"""What an oracle of a panel task knows about a scene: numbers from the exact geometry, in place of what a model sees.

An oracle answers by nearest neighbors or boosting on its numbers, see `callbacks.baselines`. Oracles whose names begin
with `ORACLE` lack something that the task is meant to require. A score above all of them needs it. Oracles whose names
begin with `POSSIBLE` know poses and pixels, so they show that the task can be solved. In a test with camera errors, an
oracle knows the wrong poses, or none, as a model does, and the true pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float64, Int

from datamodules.sources.base import ORACLE, POSSIBLE
from datamodules.sources.rooms.scene import RoomScene

WHICH_FRAME = f"{ORACLE}how far the frame is"
FOCAL_LENGTH = f"{ORACLE}focal length without pixel"
POSE = f"{ORACLE}pose without pixel"
QUARTER = f"{ORACLE}pixel and nearest quarter turn"
POSES = f"{ORACLE}all poses without pixel"
IMAGES = f"{ORACLE}image statistics"
SPREAD_AND_PATH = f"{ORACLE}image spread and path length"
WITHOUT_ORDER = f"{ORACLE}spreads of directions and path, without order"
ALL_WITHOUT_ORDER = f"{ORACLE}all directions and centers, without order"
PIXEL = f"{POSSIBLE}pose and pixel"
IN_TIME = f"{POSSIBLE}images in their order"

SMALLEST = 1e-3  # lower bound of numbers before the logarithm
MOST_POSES = 4  # frames whose poses `all_poses` describes
Numbers = Sequence[float]
Oracles = dict[str, Numbers]


class RoomVideo(NamedTuple):
    """What the frames of a video show, and what a model is told about their cameras.

    Attributes:
        camera_from_room: True poses from the room's frame (OpenCV axes, meters).
        half_view: Tangent of half the field of view.
        given_from_room: The poses that a model is given, NaN for a frame without a camera. None is the true ones.
    """

    camera_from_room: Float64[np.ndarray, "T 4 4"]
    half_view: float
    given_from_room: Float64[np.ndarray, "T 4 4"] | None = None

    @property
    def given(self) -> Float64[np.ndarray, "T 4 4"]:
        """The poses from the room's frame that a model is given."""
        return self.camera_from_room if self.given_from_room is None else self.given_from_room


class Sight(NamedTuple):
    """Where a panel is in each frame of a video.

    Attributes:
        start_from_camera: Given poses relative to the first given one (OpenCV axes, meters). NaN where none is given,
            and in all frames without a pose of the start.
        has_camera: Whether the pose of a frame is given.
        center: Panel's center in each camera's frame.
        size: Width and height of the panel.
        half_view: Tangent of half the field of view.
    """

    start_from_camera: Float64[np.ndarray, "T 4 4"]
    has_camera: Bool[np.ndarray, " T"]
    center: Float64[np.ndarray, "T 3"]
    size: Float64[np.ndarray, " 2"]
    half_view: float

    @property
    def pixel(self) -> Float64[np.ndarray, "T 2"]:
        """Place of the center in the frame, in units of the focal length from the middle."""
        return self.center[:, :2] / np.where(np.abs(self.center[:, 2:]) < SMALLEST, SMALLEST, self.center[:, 2:])

    @property
    def is_seen(self) -> Bool[np.ndarray, " T"]:
        """Whether the center is inside the frame."""
        return (self.center[:, 2] > 0) & (np.abs(self.pixel) < self.half_view).all(1)

    @property
    def ranked(self) -> Int[np.ndarray, " T"]:
        """All frames, those that show the center nearest to their middle first."""
        return np.argsort(np.where(self.is_seen, np.abs(self.pixel).max(1), np.inf), kind="stable")

    @property
    def posed(self) -> Int[np.ndarray, " n"]:
        """The frames that show the center and whose pose is given, the best first. Without any, those that show it."""
        shown = self.ranked[: len(self.frames)]
        known = shown[self.has_camera[shown]]
        return known if len(known) else shown

    @property
    def best(self) -> int:
        """The frame that shows the center nearest to its middle, among `posed`."""
        return int(self.posed[0])

    @property
    def frames(self) -> Int[np.ndarray, " n"]:
        """The frames that show the center in the order of the video, at least one."""
        return np.sort(self.ranked[: max(1, int(self.is_seen.sum()))])

    def pose(self, frame: int) -> list[float]:
        """Describe a camera relative to the first: the logarithm of its distance, its center, its direction."""
        center, direction = self.start_from_camera[frame, :3, [3, 2]]
        return [log(np.linalg.norm(center)), *center, *direction]

    def all_poses(self, frames_per_station: int) -> list[float]:
        """Describe which stations show the panel: their number, and the poses of `MOST_POSES`, the best first."""
        ranked = self.ranked[self.ranked % frames_per_station == 0]
        poses = [[float(self.is_seen[frame]), *self.pose(frame)] for frame in ranked[:MOST_POSES].tolist()]
        return [float(self.is_seen[ranked].sum()), *np.ravel(poses)]

    def images(self) -> list[float]:
        """Describe the panel in the frames without their cameras: number, place, size, and spread, in half frames."""
        place, best = self.pixel[self.frames] / self.half_view, self.ranked[0]
        apparent = self.size / self.half_view / max(SMALLEST, self.center[best, 2])
        spreads = [log(np.ptp(place[:, 0])), log(np.ptp(place[:, 1])), *place.std(0)]
        return [float(len(place)), *self.pixel[best] / self.half_view, *place.mean(0), *np.log(apparent), *spreads]

    def ray(self, frame: int) -> Float64[np.ndarray, " 3"]:
        """Return the direction of the panel in the first camera's frame, of depth 1 in its own camera."""
        return self.start_from_camera[frame, :3, :3] @ np.array([*self.pixel[frame], 1.0])

    def turn(self, frame: int, *, to_panel: bool) -> float:
        """Return the turn to the left, 0 to 360 degrees, from the first view to a view or to the panel in it."""
        direction = self.ray(frame) if to_panel else self.start_from_camera[frame, :3, 2]
        return float(np.rad2deg(np.arctan2(-direction[0], direction[2])) % 360)

    def quarter_and_bearing(self, frame: int) -> float:
        """Return the turn to the panel, 0 to 360 degrees, where the turn to the view is rounded to a quarter."""
        bearing = np.rad2deg(np.arctan2(-self.center[frame, 0], self.center[frame, 2]))
        return float((90 * np.round(self.turn(frame, to_panel=False) / 90) + bearing) % 360)


def sight(room: RoomScene, video: RoomVideo, color: str = "red", start_frames: int | None = None) -> Sight:
    """Return where the panel of a color is in each frame.

    Args:
        room: The room and its panels.
        video: The video. True poses decide where the panel is in a frame.
        color: Color of the panel.
        start_frames: Number of frames at the start of the video, if the answer is about the start. None: of all frames.
    """
    (panel,) = (thing for thing in room.things if thing.category == f"{color} panel")
    camera_from_room, given = video.camera_from_room, video.given
    places = np.tile(panel.center, (len(camera_from_room), 1))
    if panel.track:
        places[:, :2] = np.array(panel.track)[:, :2]
    center = np.einsum("tij,tj->ti", camera_from_room[:, :3, :3], places) + camera_from_room[:, :3, 3]
    has_camera = np.isfinite(given).all((1, 2))
    start = given[int(has_camera[:start_frames].argmax())]  # the first frame's NaN, if none is given
    size = np.array([max(panel.size[:2]), panel.size[2]])
    return Sight(start @ np.linalg.inv(given), has_camera, center, size, video.half_view)


def shows(room: RoomScene, video: RoomVideo, color: str = "red") -> Bool[np.ndarray, " T"]:
    """Return which frames show some part of the panel of a color."""
    (panel,) = (thing for thing in room.things if thing.category == f"{color} panel")
    steps = np.stack(np.meshgrid(*[np.linspace(-0.5, 0.5, 9)] * 3), -1).reshape(-1, 3) * panel.size
    cos, sin = np.cos(panel.yaw), np.sin(panel.yaw)
    points = steps @ np.array([[cos, sin, 0], [-sin, cos, 0], [0, 0, 1]]) + panel.center
    seen = np.einsum("tij,pj->tpi", video.camera_from_room[:, :3, :3], points) + video.camera_from_room[:, None, :3, 3]
    is_inside = (np.abs(seen[..., :2]) < video.half_view * seen[..., 2:]).all(-1)
    return is_inside.any(1)


def log(number: float | np.floating) -> float:
    """Return the logarithm of a positive number, or of the smallest that counts. It is NaN for NaN."""
    return float(np.log(np.maximum(number, SMALLEST)))
