"""The embedded dataset: furnished rooms, rendered once, with exact ground truth."""

from __future__ import annotations

from functools import partial
from typing import Any, Literal

import numpy as np

from datamodules.sources.base import SPLITS, Split
from datamodules.sources.rooms.layout import draw_scene
from datamodules.sources.rooms.questions import ask
from datamodules.sources.rooms.rendered import RenderedScenes
from datamodules.sources.rooms.writer import DrawnScene, draw_intrinsics
from zoo.errors import InputError, check_choice

VERSION = 8  # increase it with every change to the scenes or the questions
Trajectory = Literal["loop", "local"]


class Rooms(RenderedScenes):
    """Furnished rooms, rendered on first use, with cameras, depth and VSI-Bench's question types.

    A scene depends only on the seed, its split and its index. Single frames carry no metric scale, see
    `datamodules.sources.rooms.layout`. Depth is rendered when it is needed.

    Args:
        trajectory: Camera motion: "loop" goes around the room as in a scan; "local" circles a spot with a radius of 0.3
            to 0.8 m, independent of the size of the room.
        dynamic_objects: Add one or two moving things, for questions about time.
        scenes: Number of training, validation and test scenes.
        size: Width and height of a frame in pixels, even.
        frames: Raw frames of each video.
        seed: Seed of all scenes.
        root: Cache folder, with one folder per combination of settings.
        workers: Rendering processes; null is one per CPU core.

    Raises:
        InputError: Invalid settings.
    """

    default_question_types = ("room_size_estimation",)  # which cameras decide, and a tiny model learns in minutes

    def __init__(
        self,
        trajectory: Trajectory = "loop",
        dynamic_objects: bool = False,
        scenes: tuple[int, int, int] = (1500, 150, 150),
        size: int = 56,
        frames: int = 48,
        seed: int = 0,
        root: str = "cache/rooms",
        workers: int | None = None,
    ) -> None:
        check_choice("Rooms: trajectory", trajectory, Trajectory)
        if len(scenes) != 3 or min(scenes) < 0:
            raise InputError(f"Rooms: scenes are three counts (train, val, test), not {scenes}")
        self.trajectory, self.dynamic_objects = trajectory, dynamic_objects
        counts = dict(zip(SPLITS, scenes, strict=True))
        motion: dict[str, Any] = {"trajectory": trajectory, "dynamic_objects": dynamic_objects}
        settings = {**motion, "size": size, "frames": frames, "seed": seed}
        super().__init__(root, [VERSION, settings, counts], counts, size, frames, seed, workers)

    def draw(self, split: Split, index: int, rng: np.random.Generator) -> DrawnScene:
        """Draw scene `index` of a split."""
        K_px = draw_intrinsics(self.size, rng)
        scene, world_to_camera = draw_scene(self.trajectory, self.dynamic_objects, self.frames, rng)
        prefix = f"rooms-{self.trajectory}-{split}-{index:05d}"
        questions = partial(ask, scene, prefix)
        return DrawnScene("rooms", f"{split}_{index:05d}", scene, world_to_camera, K_px, questions)
