"""Writes the files of one scene: video, cameras and description; returns its questions."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import av
import numpy as np
import torch
from jaxtyping import Float64, UInt8

from datamodules.cameras_file import write_cameras
from datamodules.sources.base import SPLITS, Split
from datamodules.sources.rooms.layout import draw_scene
from datamodules.sources.rooms.questions import ask
from datamodules.sources.rooms.renderer import render
from datamodules.sources.rooms.scene import RoomScene, save_scene

DATASET = "rooms"
FRAMES_PER_SECOND = 4
FIELD_OF_VIEW_DEG = (55.0, 95.0)


@dataclass(frozen=True)
class Settings:
    """What a scene depends on besides its split and index; see `Rooms`."""

    trajectory: Literal["loop", "local"]
    dynamic_objects: bool
    size: int
    frames: int
    seed: int


def write_scene(folder: Path, settings: Settings, split: Split, index: int) -> str:
    """Writes scene `index` of a split to <folder>/rooms/ and returns its questions as JSON lines."""
    rng = np.random.default_rng([settings.seed, SPLITS.index(split), index])
    K_px = draw_intrinsics(settings.size, rng)
    scene, world_to_camera = draw_scene(settings.trajectory, settings.dynamic_objects, settings.frames, rng)
    prefix = f"{DATASET}-{settings.trajectory}-{split}-{index:05d}"
    return write_rendered(folder, (DATASET, f"{split}_{index:05d}"), scene, world_to_camera, K_px, prefix, rng)


def draw_intrinsics(side: int, rng: np.random.Generator) -> Float64[np.ndarray, "3 3"]:
    """Random intrinsics of a camera with frames of side x side pixels."""
    focal = side / 2 / np.tan(np.deg2rad(rng.uniform(*FIELD_OF_VIEW_DEG)) / 2)
    return np.array([[focal, 0, side / 2], [0, focal, side / 2], [0, 0, 1]])


def write_rendered(
    folder: Path,
    place: tuple[str, str],
    scene: RoomScene,
    world_to_camera: Float64[np.ndarray, "T 4 4"],
    K_px: Float64[np.ndarray, "3 3"],
    prefix: str,
    rng: np.random.Generator,
) -> str:
    """Renders a scene, writes <folder>/<dataset>/<name>.* and returns its questions as JSON lines.

    Args:
        folder: Folder of the whole dataset.
        place: Dataset and name.
        scene: The scene.
        world_to_camera: Pose of each frame.
        K_px: Intrinsics in pixels; the principal point is the center of a square frame.
        prefix: Prefix of the question ids.
        rng: Draws the questions.
    """
    dataset, name = place
    side = round(2 * K_px[0, 2])
    rendering = render(scene, world_to_camera, K_px, side, side)
    base = folder / dataset / name
    write_video(base.with_name(f"{name}.mp4"), rendering.rgb)
    write_cameras(
        base.with_name(f"{name}.cameras.json"), torch.from_numpy(world_to_camera), torch.from_numpy(K_px),
        width=side, height=side,
    )  # fmt: skip
    save_scene(scene, base.with_name(f"{name}.scene.json"))
    names = {"dataset": dataset, "scene_name": name}
    rows = [asdict(question) | names for question in ask(scene, rendering.ids, rng, prefix)]
    return "".join(json.dumps(row | {"options": row["options"] or None}) + "\n" for row in rows)


def write_video(path: Path, frames: UInt8[np.ndarray, "T H W 3"]) -> None:
    """Writes nearly lossless H.264 with a key frame every 8 frames, so that single frames decode fast."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=FRAMES_PER_SECOND)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        stream.gop_size = 8
        stream.options = {"crf": "18", "preset": "ultrafast", "threads": "1"}
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), "rgb24")))
        container.mux(stream.encode())
