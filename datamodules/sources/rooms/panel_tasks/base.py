"""Base classes of tasks on panels, and of those whose answer is the place of one panel."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar, NamedTuple

import numpy as np
from jaxtyping import Float64

from datamodules.sources.rooms import panel_oracles as known
from datamodules.sources.rooms.panel_oracles import (
    Oracles,
    Places,
    Posteriors,
    RoomVideo,
    exact_rules,
    panel_of,
    sight,
)
from datamodules.sources.rooms.scene import RoomScene
from zoo.benchmarks import Benchmark, PanelBench
from zoo.configuration import Configurable
from zoo.errors import InputError
from zoo.sequences.layout import TEMPORAL_PATCH_SIZE

Answers = Float64[np.ndarray, " n"]


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
        max_attempts: Number of rooms to draw until one permits every answer.
        version: Increase it with every change to the scenes or the question, so that rooms are rendered again.
    """

    question_type: ClassVar[str]
    question: ClassVar[str]
    benchmark: ClassVar[Benchmark] = PanelBench()
    max_attempts: ClassVar[int] = 2000
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

    def posteriors(self, room: RoomScene, video: RoomVideo) -> Posteriors:
        """Return the probability of each answer given what each exact rule knows, by the rule's name.

        Args:
            room: The room and its panels.
            video: The video. Its `given` poses are wrong, or missing, in a test with camera errors.
        """
        return {}

    def true_answer(self, room: RoomScene, video: RoomVideo) -> float:
        """Return the answer, not rounded, that follows from the panel's place in the frames and the told cameras.

        With true cameras it is the ground truth before rounding. With others, it is what a model should answer that
        reads the true frames and believes the cameras. Of the frames that show the panel and whose camera is told, the
        one that shows it nearest to its middle decides. NaN if there is none, or if no camera of the start is told.

        Args:
            room: The room and its panels.
            video: The true cameras of the frames, and the told ones (`given_from_room`).

        Raises:
            InputError: The answers of this task are not continuous.
        """
        raise InputError(f"{type(self).__name__} has no continuous answer")

    def moved(self, room: RoomScene, video: RoomVideo, answer: float) -> RoomScene | None:
        """Return the room with its panel moved to where `true_answer` is another, or None if there is no such place.

        Args:
            room: The room and its panel.
            video: The video.
            answer: The answer.

        Raises:
            InputError: The answers of this task are not continuous.
        """
        raise InputError(f"{type(self).__name__} has no continuous answer")

    def write(self, answer: float) -> str:
        """Return the ground truth for an answer: the nearest class.

        Raises:
            InputError: The answers of this task are not continuous.
        """
        raise InputError(f"{type(self).__name__} has no continuous answer")

    def sweep(self, room: RoomScene, video: RoomVideo, count: int, rng: np.random.Generator) -> Answers:
        """Return even steps of `true_answer` over more than 1.5 classes. They begin anywhere between two classes.

        Args:
            room: The room and its panel.
            video: The video.
            count: Number of steps.
            rng: Draws the first.

        Raises:
            InputError: The answers of this task are not continuous.
        """
        raise InputError(f"{type(self).__name__} has no continuous answer")


class PanelPlace(PanelTask):
    """A task whose answer is where a panel is: a number that follows from its place, rounded to some classes.

    Attributes:
        classes: The possible answers.
        frames_per_station: Adjacent frames with nearly the same view.
        swept: Classes over which `sweep` spreads.
    """

    classes: ClassVar[Answers]
    frames_per_station: ClassVar[int] = TEMPORAL_PATCH_SIZE
    swept: ClassVar[float] = 2.0

    @abstractmethod
    def places(self, room: RoomScene, video: RoomVideo) -> Places:
        """Return where the generator could have put the panel in a room whose told cameras are true."""

    def oracles(self, room: RoomScene, video: RoomVideo) -> Oracles:
        """Know the panel in the images."""
        return {known.IMAGES: sight(room, video).images()}

    def posteriors(self, room: RoomScene, video: RoomVideo) -> Posteriors:
        """Know the poses without the pixel, or both."""
        places, answer = self.places(room, video), self.true_answer(room, video)
        possible = places.posterior(places.likely) if np.isnan(answer) else {self.write(answer): 1.0}
        told = video.told(self.frames_per_station)
        stations = slice(None, None, self.frames_per_station)
        shown = RoomVideo(video.camera_from_room[stations], video.half_view, told[stations])
        return {**exact_rules(places, panel_of(room), shown), known.PIXEL: possible}

    def sweep(self, room: RoomScene, video: RoomVideo, count: int, rng: np.random.Generator) -> Answers:
        """Spread over `swept` classes about the answer. The middle is uniform over one class, also at the ends."""
        own, last = np.abs(self.classes - self.true_answer(room, video)).argmin(), len(self.classes) - 1
        middle = np.clip(own - 0.5, self.swept / 2, last - 1 - self.swept / 2) + rng.random()
        steps = middle + self.swept * np.linspace(-0.5, 0.5, count)
        return np.interp(steps, np.arange(len(self.classes)), self.classes)


def hidden_panel(task: PanelTask, frames: int) -> InputError:
    """Return the error of a task that finds no room in which every possible answer is visible."""
    return InputError(
        f"{type(task).__name__}: {task.max_attempts} rooms in a row hide a panel: take more --data.source.frames than"
        f" {frames}, or a wider --data.source.fov"
    )
