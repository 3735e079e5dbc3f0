"""Base class of rendered datasets with exact ground truth, and `Rooms`, the dataset of furnished rooms."""

from __future__ import annotations

import json
import sys
from abc import abstractmethod
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import av
import numpy as np
import torch
from jaxtyping import Float64, Int16, UInt8

from datamodules.cameras_file import write_cameras
from datamodules.scenes import Question, Scene
from datamodules.sources.annotations import read_layout
from datamodules.sources.base import SPLITS, SceneSource, Split, build_once, map_in_processes
from datamodules.sources.rooms.layout import draw_scene
from datamodules.sources.rooms.questions import ask
from datamodules.sources.rooms.renderer import render
from datamodules.sources.rooms.scene import DESCRIPTION, RoomScene, save_scene
from zoo.cpu import available_cores
from zoo.errors import InputError, check_choice
from zoo.files.cache import ROOT, cache_folder
from zoo.files.fingerprint import fingerprint
from zoo.progress import progress

FRAMES_PER_SECOND = 4
FIELD_OF_VIEW_DEG = (55.0, 95.0)


class DrawnScene(NamedTuple):
    """A scene with its names and its camera.

    Attributes:
        dataset: Name of the dataset and of its folder.
        name: Name of the scene.
        scene: The room.
        world_to_camera: Pose of each frame.
        K_px: Intrinsics in pixels. The principal point is the center of a square frame.
        ask: Draws the questions from the object ids of all frames (see `Rendering`) and a random generator.
    """

    dataset: str
    name: str
    scene: RoomScene
    world_to_camera: Float64[np.ndarray, "T 4 4"]
    K_px: Float64[np.ndarray, "3 3"]
    ask: Callable[[Int16[np.ndarray, "T H W"], np.random.Generator], list[Question]]


def draw_intrinsics(
    side: int, rng: np.random.Generator, fov_deg: tuple[float, float] = FIELD_OF_VIEW_DEG
) -> Float64[np.ndarray, "3 3"]:
    """Draw the intrinsics of a camera with frames of side x side pixels."""
    focal = side / 2 / np.tan(np.deg2rad(rng.uniform(*fov_deg)) / 2)
    return np.array([[focal, 0, side / 2], [0, focal, side / 2], [0, 0, 1]])


def write_drawn(folder: Path, drawn: DrawnScene, side: int, rng: np.random.Generator) -> str:
    """Render a scene, write <folder>/<dataset>/<name>.* and return its questions as JSON lines.

    Args:
        folder: Folder of the whole dataset.
        drawn: The scene.
        side: Width and height of a frame in pixels.
        rng: Draws the questions.
    """
    dataset, name, scene, world_to_camera, K_px, ask = drawn
    rendering = render(scene, world_to_camera, K_px, side, side)
    base = folder / dataset / name
    base.parent.mkdir(exist_ok=True)
    write_video(base.with_name(f"{name}.mp4"), rendering.rgb)
    cameras = base.with_name(f"{name}.cameras.json")
    write_cameras(cameras, torch.from_numpy(world_to_camera), torch.from_numpy(K_px), width=side, height=side)
    save_scene(scene, base.with_name(f"{name}{DESCRIPTION}"))
    names = {"dataset": dataset, "scene_name": name}
    rows = [asdict(question) | names for question in ask(rendering.ids, rng)]
    return "".join(json.dumps(row | {"options": row["options"] or None}) + "\n" for row in rows)


def write_video(path: Path, frames: UInt8[np.ndarray, "T H W 3"]) -> None:
    """Write nearly lossless H.264 with a key frame every 8 frames, so that single frames can be decoded fast."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=FRAMES_PER_SECOND)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        stream.gop_size = 8
        stream.options = {"crf": "18", "preset": "ultrafast", "threads": "1"}
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), "rgb24")))
        container.mux(stream.encode())


# ---- The base class of rendered datasets ----------------------------------------------------------------------------


class RenderedScenes(SceneSource):
    """Scenes that are rendered on first use, into a folder for their settings.

    Args:
        root: Cache folder that contains the folder of the scenes.
        key: JSON-like content on which the scenes depend.
        counts: Number of scenes of each split.
        size: Width and height of a frame in pixels.
        frames: Frames of each video.
        seed: Seed of all scenes.
        workers: Rendering processes. None uses one per CPU core.

    Raises:
        InputError: A setting is invalid.
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
        self.key, self.folder = key, cache_folder(root) / fingerprint(key)[:16]
        self.counts, self.size, self.frames, self.seed = counts, size, frames, seed
        self.workers = workers or available_cores()

    @abstractmethod
    def draw(self, split: Split, index: int, rng: np.random.Generator) -> DrawnScene:
        """Draw scene `index` of a split. The source must be picklable."""

    def generator(self, split: Split, index: int) -> np.random.Generator:
        """Return the random generator of scene `index` of a split."""
        return np.random.default_rng([self.seed, SPLITS.index(split), index])

    def write_scene(self, folder: Path, split: Split, index: int) -> str:
        """Write the files of scene `index` of a split, and return its questions as JSON lines."""
        rng = self.generator(split, index)
        return write_drawn(folder, self.draw(split, index, rng), self.size, rng)

    def prepare(self) -> None:
        """Render the dataset unless it exists. A second process waits for the first."""
        build_once(self.folder, "another process renders these rooms: waiting for it", self._write)

    def scenes(self, split: Split) -> list[Scene]:
        """Return the rendered scenes of a split."""
        if not self.counts[split]:
            return []
        if not self.folder.exists():
            raise FileNotFoundError(f"{self.folder} is absent: call prepare() first")
        scenes, self.missing = read_layout(self.folder, f"{split}.jsonl", benchmark=self.benchmark)
        return scenes

    def _write(self, folder: Path) -> None:
        print(f"{self.description} into {self.folder}/; {ROOT} names another folder for all caches", file=sys.stderr)
        (folder / "settings.json").write_text(json.dumps(self.key))
        scenes = [(split, index) for split, count in self.counts.items() for index in range(count)]
        lines: dict[Split, list[str]] = {split: [] for split in SPLITS}
        questions = map_in_processes(partial(self.write_scene, folder), scenes, self.workers)
        for split, _ in progress(scenes, self.description, "scenes"):
            lines[split].append(next(questions))
        for split in SPLITS:
            (folder / f"{split}.jsonl").write_text("".join(lines[split]))


# ---- Furnished rooms ------------------------------------------------------------------------------------------------

VERSION = 8  # increase it with every change to the scenes or the questions
Trajectory = Literal["loop", "local"]


class Rooms(RenderedScenes):
    """Furnished rooms, rendered on first use, with cameras, depth and VSI-Bench's question types.

    A scene depends only on the seed, its split and its index. Single frames carry no metric scale, see
    `datamodules.sources.rooms.layout`. Depth is rendered on demand.

    Args:
        trajectory: Camera motion. "loop" goes around the room as in a scan. "local" circles a spot with a radius of 0.3
            to 0.8 m, independent of the size of the room.
        dynamic_objects: Add one or two moving things, for questions about time.
        scenes: Number of training, validation and test scenes.
        size: Width and height of a frame in pixels, even.
        frames: Raw frames of each video.
        seed: Seed of all scenes.
        root: Cache folder, with one folder per combination of settings.
        workers: Rendering processes. null uses one per CPU core.

    Raises:
        InputError: A setting is invalid.
    """

    default_question_types = ("room_size_estimation",)  # depends on cameras, and a tiny model learns it in minutes

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
