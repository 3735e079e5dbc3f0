"""Base class of the tasks about panels."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar, NamedTuple

import numpy as np
from jaxtyping import Float64

from datamodules.sources.rooms.scene import RoomScene
from zoo.benchmarks import Benchmark, PanelBench
from zoo.configuration import Configurable


class PanelScene(NamedTuple):
    """A room with its camera path, and its question.

    Attributes:
        room: The room and its panels.
        camera_from_room: Poses from the room's frame (OpenCV axes, meters).
        question: The question, without its options.
        ground_truth: A number or an option's letter.
        options: Of a multiple-choice question.
    """

    room: RoomScene
    camera_from_room: Float64[np.ndarray, "T 4 4"]
    question: str
    ground_truth: str
    options: tuple[str, ...] = ()


class PanelTask(Configurable, ABC):
    """A question about panels. A new task is a subclass with a `question_type` and `draw`.

    A task draws its answer first, and the room, the camera path and the sizes of the panels independently of it. Then
    neither the text nor the cameras contain anything about the answer.

    Attributes:
        question_type: A type of `benchmark`.
        benchmark: Scores the answers; a subclass of `PanelBench` adds question types.
        version: Increase it with every change to the scenes or the question: rendered rooms are made anew.
    """

    question_type: ClassVar[str]
    benchmark: ClassVar[Benchmark] = PanelBench()
    version: ClassVar[int] = 1

    @abstractmethod
    def draw(self, frames: int, K_px: Float64[np.ndarray, "3 3"], rng: np.random.Generator) -> PanelScene:
        """Draw a room, its camera path and its question.

        Args:
            frames: Frames of the video.
            K_px: Intrinsics; the principal point is the center of a square frame.
            rng: Random generator.

        Raises:
            InputError: No room fits the settings.
        """
