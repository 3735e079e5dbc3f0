"""The embedded dataset: furnished rooms, drawn, rendered and written once, with exact ground truth."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Literal

from datamodules.sources.rooms.rendered import Make, RenderedScenes
from datamodules.sources.rooms.writer import DATASET, SPLITS, Settings, write_scene
from zoo.errors import InputError

VERSION = 8  # of what the settings lead to: raise it with every change to the scenes or the questions


class Rooms(RenderedScenes):
    """Furnished rooms, rendered on first use, with cameras, depth and the questions that VSI-Bench asks.

    A scene depends on the seed, its split and its number alone. Meters can't be read off a frame: see
    `datamodules.sources.rooms.layout`. Depth is rendered again when wanted: see `render_depth`.

    Args:
        trajectory: how the camera moves: "loop", around the room as in a scan, or "local", around a spot with a
            radius of 0.3 to 0.8 m, which says nothing about the size of the room.
        dynamic_objects: adds one or two things that drive around, for the questions about time.
        scenes: how many scenes to make for training, validation and test.
        size: width and height of a frame in pixels, even.
        frames: raw frames of each video.
        seed: another seed gives other rooms.
        root: cache folder; each combination of settings has a folder of its own in it.
        workers: processes that render; null takes one for each CPU core.

    Raises ValueError for settings that make no sense.
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
        key = json.dumps([VERSION, asdict(self.settings), counts], sort_keys=True)
        super().__init__(folder_of(key, root), counts, workers)

    def work(self, folder: Path) -> Make:
        (folder / DATASET).mkdir()
        (folder / "settings.json").write_text(json.dumps(asdict(self.settings) | {"version": VERSION}))
        return partial(write_scene, folder, self.settings)


def folder_of(key: str, root: str) -> Path:
    """The folder in `root` of all that the key says."""
    return Path(root).expanduser() / hashlib.sha256(key.encode()).hexdigest()[:16]


def check_rendering(source: str, size: int, frames: int, seed: int, workers: int | None) -> None:
    """Raises InputError for settings of rendering that make no sense."""
    if size < 16 or size % 2:
        raise InputError(f"{source}: size {size} must be even (H.264 halves the color's resolution) and at least 16")
    if frames < 12 or seed < 0:
        raise InputError(f"{source}: at least 12 frames and a seed of at least 0 are needed, not {frames} and {seed}")
    if workers is not None and workers < 1:
        raise InputError(f"{source}: workers must be at least 1 or null, not {workers}")
