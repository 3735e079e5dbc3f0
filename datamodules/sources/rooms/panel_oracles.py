"""Oracles of panel tasks: what a rule could answer that knows some of what a model sees and is told.

There are two kinds. **Exact rules** answer by Bayes: a task lists where its generator could have put the panel in a
room with these cameras (`Places`), a rule tells which of them it can't distinguish from the true one, and what is left
is the probability of each answer. No rule with the same knowledge is better. **Numbers**, for tasks without
such a list, describe what an oracle knows. It answers by nearest neighbors or boosting on them.

Oracles whose names begin with `ORACLE` lack something that the task is meant to require. A score above all of them
needs it. Oracles whose names begin with `POSSIBLE` know poses and pixels, so they show that the task can be solved. In
a test with camera errors, an oracle knows the wrong poses, or none, as a model does, and the true pixels. An
oracle knows all frames. One that the test does not show has the error of the shown view before it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float64, Int

from datamodules.sources.base import ORACLE, POSSIBLE
from datamodules.sources.rooms.scene import RoomScene, Thing

NO_PIXEL = f"{ORACLE}poses without pixel"
WHICH = f"{ORACLE}poses, which views show the center"
NEARNESS = f"{ORACLE}poses, these views by nearness"
AMOUNT = f"{ORACLE}poses, how much each view shows"
HALVES = f"{ORACLE}poses, which half of each view"
COARSE = f"{ORACLE}pixel, poses to 45 degrees"
PLACE = f"{ORACLE}pixel without poses"
FOCAL_LENGTH = f"{ORACLE}focal length without pixel"
POSE = f"{ORACLE}pose without pixel"
IMAGES = f"{ORACLE}image statistics"
SPREAD_AND_PATH = f"{ORACLE}image spread and path length"
WITHOUT_ORDER = f"{ORACLE}spreads of directions and path, without order"
ALL_WITHOUT_ORDER = f"{ORACLE}all directions and centers, without order"
PIXEL = f"{POSSIBLE}pose and pixel"
IN_TIME = f"{POSSIBLE}images in their order"

SMALLEST = 1e-3  # lower bound of numbers before the logarithm
Numbers = Sequence[float]
Oracles = dict[str, Numbers]
Posteriors = dict[str, dict[str, float]]  # by the name of a rule: the probability of each answer


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

    @property
    def intrinsics(self) -> Float64[np.ndarray, "3 3"]:
        """Intrinsics in units of the focal length."""
        return np.array([[1.0, 0.0, self.half_view], [0.0, 1.0, self.half_view], [0.0, 0.0, 1.0]])

    @property
    def eye(self) -> Float64[np.ndarray, " 3"]:
        """Center of the first camera, in the room's frame."""
        return np.linalg.inv(self.camera_from_room[0])[:3, 3]

    @property
    def first_yaw(self) -> float:
        """Direction of the first view in plan, in radians."""
        return direction_of(self.camera_from_room[0, 2, :3])

    def first_given(self, start_frames: int | None = None) -> int:
        """Return the first frame at the start of the video whose pose is given. Without any, the first frame."""
        return int(np.isfinite(self.given[:start_frames]).all((1, 2)).argmax())

    def told(self, start_frames: int | None = None) -> Float64[np.ndarray, "T 4 4"]:
        """Return the given poses in a world in which the first given one is true.

        Only poses relative to the start matter for an answer. In this world they can be compared with the room.
        """
        if self.given_from_room is None:
            return self.camera_from_room
        start = self.first_given(start_frames)
        return self.given @ np.linalg.inv(self.given[start]) @ self.camera_from_room[start]


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

    def images(self) -> list[float]:
        """Describe the panel in the frames without their cameras: number, place, size, and spread, in half frames."""
        place, best = self.pixel[self.frames] / self.half_view, self.ranked[0]
        apparent = self.size / self.half_view / max(SMALLEST, self.center[best, 2])
        spreads = [log(np.ptp(place[:, 0])), log(np.ptp(place[:, 1])), *place.std(0)]
        return [float(len(place)), *self.pixel[best] / self.half_view, *place.mean(0), *np.log(apparent), *spreads]

    def turn(self, frame: int, *, to_panel: bool) -> float:
        """Return the turn to the left, 0 to 360 degrees, from the first view to a view or to the panel in it."""
        pixel = np.array([*self.pixel[frame], 1.0]) if to_panel else np.array([0.0, 0.0, 1.0])
        direction = self.start_from_camera[frame, :3, :3] @ pixel
        return float(np.rad2deg(np.arctan2(-direction[0], direction[2])) % 360)


def sight(room: RoomScene, video: RoomVideo, color: str = "red", start_frames: int | None = None) -> Sight:
    """Return where the panel of a color is in each frame.

    Args:
        room: The room and its panels.
        video: The video. True poses decide where the panel is in a frame.
        color: Color of the panel.
        start_frames: Number of frames at the start of the video, if the answer is about the start. None: of all frames.
    """
    panel, camera_from_room, given = panel_of(room, color), video.camera_from_room, video.given
    places = np.tile(panel.center, (len(camera_from_room), 1))
    if panel.track:
        places[:, :2] = np.array(panel.track)[:, :2]
    center = np.einsum("tij,tj->ti", camera_from_room[:, :3, :3], places) + camera_from_room[:, :3, 3]
    start = given[video.first_given(start_frames)]
    size = np.array([max(panel.size[:2]), panel.size[2]])
    has_camera = np.isfinite(given).all((1, 2))
    return Sight(start @ np.linalg.inv(given), has_camera, center, size, video.half_view)


def panel_of(room: RoomScene, color: str = "red") -> Thing:
    """Return the panel of a color."""
    (panel,) = (thing for thing in room.things if thing.category == f"{color} panel")
    return panel


def direction_of(vector: Float64[np.ndarray, " 3"]) -> float:
    """Return the direction of a vector in plan, in radians."""
    return float(np.arctan2(vector[1], vector[0]))


def log(number: float | np.floating) -> float:
    """Return the logarithm of a positive number, or of the smallest that counts. It is NaN for NaN."""
    return float(np.log(np.maximum(number, SMALLEST)))


# ---- Exact rules ----------------------------------------------------------------------------------------------------

SAMPLES = 9  # points along each side of a panel that measure how much of it is in a frame
SAME_KEY = 1e-6  # keys that differ by less are equal


class Places(NamedTuple):
    """Where the generator could have put the panel in a room with these cameras.

    Attributes:
        answers: The answer for each place, as a ground truth is written.
        likely: Probability of each place. They sum to 1.
        panels: The panel at each place.
    """

    answers: Sequence[str]
    likely: Float64[np.ndarray, " n"]
    panels: Sequence[Thing]

    def posterior(self, likely: Float64[np.ndarray, " n"]) -> dict[str, float]:
        """Return the probability of each answer, where each place is as likely as given. All zeros are the prior."""
        likely = likely if likely.sum() > 0 else self.likely
        chances: dict[str, float] = {}
        for answer, own in zip(self.answers, (likely / likely.sum()).tolist(), strict=True):
            if own > 0:
                chances[answer] = chances.get(answer, 0.0) + own
        return chances


class Shown(NamedTuple):
    """What frames show of a panel at each of n places.

    Attributes:
        off: Distance of the center from the middle of the frame, in half frames, to the right and down. NaN in a frame
            without a camera, infinite behind the camera.
        share: Share of the panel that is inside the frame.
    """

    off: Float64[np.ndarray, "n T 2"]
    share: Float64[np.ndarray, "n T"]

    @property
    def is_seen(self) -> Bool[np.ndarray, "n T"]:
        """Whether the center is inside the frame."""
        return (np.abs(self.off) < 1).all(-1)


def show(panels: Sequence[Thing], camera_from_room: Float64[np.ndarray, "T 4 4"], half_view: float) -> Shown:
    """Return what frames show of a panel at each place."""
    steps = np.linspace(-0.5, 0.5, SAMPLES)
    across, up = (each.ravel() for each in np.meshgrid(steps, steps))
    center, size = np.array([each.center for each in panels]), np.array([each.size for each in panels])
    yaw, wide = np.array([each.yaw for each in panels]), size[:, :2].argmax(1)
    yaw = yaw + np.pi / 2 * wide
    width = size[np.arange(len(size)), wide]
    points = np.stack([
        center[:, :1] + np.outer(width * np.cos(yaw), across),
        center[:, 1:2] + np.outer(width * np.sin(yaw), across),
        center[:, 2:] + np.outer(size[:, 2], up),
    ], -1)  # fmt: skip
    seen = np.einsum("tij,npj->ntpi", camera_from_room[:, :3, :3], points) + camera_from_room[:, None, :3, 3]
    depth = seen[..., 2:]
    with np.errstate(invalid="ignore", divide="ignore"):
        off = np.where(depth <= 0, np.inf, seen[..., :2] / depth / half_view)
    return Shown(off[:, :, len(across) // 2], (np.abs(off) < 1).all(-1).mean(-1))


Rule = Callable[[Shown], Float64[np.ndarray, "n T"]]


def nearness(shown: Shown) -> Float64[np.ndarray, "n T"]:
    """Number the frames that show the center, the one nearest to its middle first. Others have 0."""
    is_seen = shown.is_seen
    order = np.where(is_seen, np.abs(shown.off).max(-1), np.inf).argsort(1, kind="stable").argsort(1)
    return np.where(is_seen, order + 1.0, 0.0)


RULES: Mapping[str, Rule] = {
    NO_PIXEL: lambda shown: np.zeros(shown.share.shape),
    WHICH: lambda shown: shown.is_seen.astype(float),
    NEARNESS: nearness,
    AMOUNT: lambda shown: np.ceil(2 * shown.share) + (shown.share == 1),  # none, rim, most, all
    HALVES: lambda shown: np.where(shown.is_seen, np.where(shown.off[..., 0] > 0, 1.0, -1.0), 0.0),
}


def exact_rules(places: Places, panel: Thing, views: RoomVideo) -> Posteriors:
    """Return what each of `RULES` knows: the probability of each answer.

    A rule sees the true panel in the true frames, and computes from the told cameras what they would show of the panel
    at each place. It keeps the places with the same key in all views whose cameras are told. If wrong cameras leave
    none, it keeps those with the nearest key.

    Args:
        places: Where the panel could be.
        panel: Where it is.
        views: One frame of each view. Its given cameras are those of `RoomVideo.told`.
    """
    has_camera = np.isfinite(views.given).all((1, 2))
    expected = show(places.panels, views.given[has_camera], views.half_view)
    observed = show([panel], views.camera_from_room[has_camera], views.half_view)
    found = {}
    for name, rule in RULES.items():
        apart = np.square(rule(expected) - rule(observed)).sum(1)
        found[name] = places.posterior(places.likely * (apart <= apart.min() + SAME_KEY))
    return found
