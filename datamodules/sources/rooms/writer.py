"""Writes the files of one scene: video, cameras and description; returns its questions."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple

import av
import numpy as np
import torch
from jaxtyping import Float64, Int16, UInt8

from datamodules.cameras_file import write_cameras
from datamodules.scenes import Question
from datamodules.sources.rooms.renderer import render
from datamodules.sources.rooms.scene import DESCRIPTION, RoomScene, save_scene

FRAMES_PER_SECOND = 4
FIELD_OF_VIEW_DEG = (55.0, 95.0)


class DrawnScene(NamedTuple):
    """A scene with its names and its camera.

    Attributes:
        dataset: Name of the dataset, whose folder has the files.
        name: Name of the scene.
        scene: The room.
        world_to_camera: Pose of each frame.
        K_px: Intrinsics in pixels; the principal point is the center of a square frame.
        ask: Draw the questions, from the object ids of all frames (see `Rendering`) and a random generator.
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
    """Random intrinsics of a camera with frames of side x side pixels."""
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
    """Write nearly lossless H.264 with a key frame every 8 frames, so that single frames decode fast."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=FRAMES_PER_SECOND)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        stream.gop_size = 8
        stream.options = {"crf": "18", "preset": "ultrafast", "threads": "1"}
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), "rgb24")))
        container.mux(stream.encode())
