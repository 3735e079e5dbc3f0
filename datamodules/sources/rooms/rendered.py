"""A dataset that is rendered once, by several processes, and written atomically."""

from __future__ import annotations

import json
from abc import abstractmethod
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from datamodules.processes import process_map
from datamodules.scenes import Scene
from datamodules.sources.annotations import read_layout
from datamodules.sources.base import SPLITS, SceneSource, Split, build_once
from datamodules.sources.rooms.writer import DrawnScene, write_drawn
from zoo.cpu import available_cores
from zoo.errors import InputError
from zoo.files.fingerprint import fingerprint
from zoo.progress import progress


class RenderedScenes(SceneSource):
    """Scenes that are rendered on first use, in a folder for these settings alone.

    Args:
        root: Cache folder, in which the scenes have one of their own.
        key: JSON-like content on which the scenes depend.
        counts: Number of scenes of each split.
        size: Width and height of a frame in pixels.
        frames: Frames of each video.
        seed: Seed of all scenes.
        workers: Rendering processes; None is one per CPU core.

    Raises:
        InputError: Invalid settings.
    """

    description = "rendering rooms"

    def __init__(
        self, root: str, key: Any, counts: dict[Split, int], size: int, frames: int, seed: int, workers: int | None
    ) -> None:
        super().__init__()
        source = type(self).__name__
        if size < 16 or size % 2:
            raise InputError(
                f"{source}: size {size} must be even (H.264 halves the color's resolution) and at least 16"
            )
        if frames < 12 or seed < 0:
            raise InputError(
                f"{source}: at least 12 frames and a seed of at least 0 are needed, not {frames} and {seed}"
            )
        if workers is not None and workers < 1:
            raise InputError(f"{source}: workers must be at least 1 or null, not {workers}")
        self.key, self.folder = key, Path(root).expanduser() / fingerprint(key)[:16]
        self.counts, self.size, self.frames, self.seed = counts, size, frames, seed
        self.workers = workers or available_cores()

    @abstractmethod
    def draw(self, split: Split, index: int, rng: np.random.Generator) -> DrawnScene:
        """Draw scene `index` of a split; the source must be picklable."""

    def write_scene(self, folder: Path, split: Split, index: int) -> str:
        """Write the files of scene `index` of a split, and return its questions as JSON lines."""
        rng = np.random.default_rng([self.seed, SPLITS.index(split), index])
        return write_drawn(folder, self.draw(split, index, rng), self.size, rng)

    def prepare(self) -> None:
        """Render the dataset unless it exists; a second process waits for the first."""
        build_once(self.folder, "another process renders these rooms: waiting for it", self._write)

    def scenes(self, split: Split) -> list[Scene]:
        """The rendered scenes of a split."""
        if not self.counts[split]:
            return []
        if not self.folder.exists():
            raise FileNotFoundError(f"{self.folder} is absent: call prepare() first")
        scenes, self.missing = read_layout(self.folder, f"{split}.jsonl", benchmark=self.benchmark)
        return scenes

    def _write(self, folder: Path) -> None:
        (folder / "settings.json").write_text(json.dumps(self.key))
        scenes = [(split, index) for split, count in self.counts.items() for index in range(count)]
        lines: dict[Split, list[str]] = {split: [] for split in SPLITS}
        with process_map(self.workers) as mapped:
            write = partial(self.write_scene, folder)
            questions = iter(mapped(write, *zip(*scenes, strict=True)) if scenes else ())
            for split, _ in progress(scenes, self.description, "scenes"):
                lines[split].append(next(questions))
        for split in SPLITS:
            (folder / f"{split}.jsonl").write_text("".join(lines[split]))
