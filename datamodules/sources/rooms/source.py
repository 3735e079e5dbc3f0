"""The embedded dataset: furnished rooms, rendered once, with exact ground truth."""

from __future__ import annotations

import json
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Literal

from datamodules.sources.base import SPLITS
from datamodules.sources.rooms.rendered import RenderedScenes, WriteScene, check_rendering
from datamodules.sources.rooms.writer import DATASET, Settings, write_scene
from zoo.errors import InputError
from zoo.fingerprint import digest

VERSION = 8  # increase it with every change to the scenes or the questions


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

    def __init__(
        self,
        trajectory: Literal["loop", "local"] = "loop",
        dynamic_objects: bool = False,
        scenes: tuple[int, int, int] = (1500, 150, 150),
        size: int = 56,
        frames: int = 48,
        seed: int = 0,
        root: str = "cache/rooms",
        workers: int | None = None,
    ) -> None:
        if trajectory not in ("loop", "local"):
            raise InputError(f'Rooms: trajectory is "loop" or "local", not {trajectory!r}')
        if len(scenes) != 3 or min(scenes) < 0:
            raise InputError(f"Rooms: scenes are three counts (train, val, test), not {scenes}")
        check_rendering("Rooms", size, frames, seed, workers)
        self.settings = Settings(trajectory, dynamic_objects, size, frames, seed)
        counts = dict(zip(SPLITS, scenes, strict=True))
        key = digest([VERSION, asdict(self.settings), counts])[:16]
        super().__init__(Path(root).expanduser() / key, counts, workers)

    def work(self, folder: Path) -> WriteScene:
        """Prepares the folder and returns the function that writes a scene."""
        (folder / DATASET).mkdir()
        (folder / "settings.json").write_text(json.dumps(asdict(self.settings) | {"version": VERSION}))
        return partial(write_scene, folder, self.settings)
