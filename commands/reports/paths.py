"""The camera path of each scene from above, reduced to a few points for the page."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from callbacks.drawings import level_axes
from commands.reports.loaded_runs import Run
from datamodules import Rooms
from datamodules.scenes import Scene
from datamodules.sources.base import SceneSource
from zoo.configuration import check_class_paths, from_config
from zoo.errors import SCENE_FAULTS, describe_fault

POINTS = 64  # of a path, beside the frames that were used
SIDE = 1000  # of the square around a path


def camera_paths(runs: Sequence[Run]) -> tuple[dict[str, Any], list[str]]:
    """Return the paths of all answered scenes that have cameras, and notes about unreadable data.

    Datasets differ by their settings, since two may share scene names.

    Returns:
        {"paths": the paths by scene, for each dataset, "dataset": the index of each run's dataset}, and the notes.
    """
    sources = [json.dumps(run.setting("data", "source"), sort_keys=True) for run in runs]
    distinct = list(dict.fromkeys(sources))
    datasets, absent = [], []
    for source in distinct:
        same = [run for run, own in zip(runs, sources, strict=True) if own == source]
        frames: dict[str, set[int]] = {}
        for answer in (answer for run in same for answer in run.answers):
            frames.setdefault(answer.scene, set()).update(answer.frames)
        found = {}
        try:
            for scene in test_scenes(json.loads(source)) if frames else ():
                if scene.name in frames and scene.cameras is not None:
                    poses = json.loads(scene.cameras.read_text(encoding="utf-8"))["world_to_camera"]
                    if (path := flat_path(poses, frames[scene.name])) is not None:
                        found[scene.name] = path
        except (*SCENE_FAULTS, TypeError) as error:
            absent.append(f"{same[0].name}: no camera paths, its data can't be read: {describe_fault(error)}")
        datasets.append(found)
    return {"paths": datasets, "dataset": [distinct.index(source) for source in sources]}, absent


def test_scenes(source: Mapping[str, Any] | None) -> list[Scene]:
    """Return the test scenes of a dataset, without preparing it; without a config, of the default one."""
    check_class_paths(source)
    dataset = Rooms() if source is None else from_config(SceneSource, source)  # type: ignore[type-abstract]
    return list(dataset.scenes("test"))


def flat_path(world_to_camera: list[Any], frames: Iterable[int]) -> dict[str, Any] | None:
    """Return the path of one scene; None if no frame has a pose.

    A path is `{"frames": [...], "xy": [[x, y], ...], "meters": side of the square}`, seen from above: from the mean
    direction of the cameras' tops. x and y are 0..1000, y downwards. Frames without a pose are left out.

    Args:
        world_to_camera: One 4 x 4 matrix per frame, OpenCV axes, or None without a pose.
        frames: Frames that the path must contain.
    """
    every = np.linspace(0, len(world_to_camera) - 1, min(POINTS, len(world_to_camera))).round().astype(int)
    wanted = sorted({*every.tolist(), *(frame for frame in frames if 0 <= frame < len(world_to_camera))})
    kept = [frame for frame in wanted if world_to_camera[frame] is not None]
    if not kept:
        return None
    poses = np.array([world_to_camera[frame] for frame in kept], float)
    rotation, translation = poses[:, :3, :3], poses[:, :3, 3]
    centers = -np.einsum("nij,ni->nj", rotation, translation)
    level = centers @ level_axes(-rotation[:, 1].mean(0)).T  # OpenCV's y, the second row, points down
    low, high = level.min(0), level.max(0)
    side = max(float((high - low).max()), 1e-6)
    xy = ((level - (low + high) / 2) / side * (1, -1) + 0.5) * SIDE
    return {"frames": kept, "xy": xy.round().astype(int).tolist(), "meters": round(side, 2)}
