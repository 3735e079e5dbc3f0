"""The camera's path through each scene from above, small enough for a page."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float
from jsonargparse import ArgumentError, ArgumentParser

from commands.reports.runs import Run
from datamodules import Rooms
from datamodules.scenes import Scene
from datamodules.sources.base import SceneSource

POINTS = 64  # of a path, beside the frames that were used
SIDE = 1000  # of the square that a path lies in


@dataclass(frozen=True)
class CameraPaths:
    """A path for each scene of each dataset, and which dataset each run was tested on.

    A path is {"frames": [...], "xy": [[x, y], ...], "meters": side of the square}, as seen from above, where the
    cameras' tops point on average; x and y are 0..1000, y downwards. Only frames whose pose is known are in it.
    """

    datasets: list[dict[str, dict[str, Any]]]  # by scene
    of_run: list[int]


def camera_paths(runs: Sequence[Run]) -> tuple[CameraPaths, list[str]]:
    """The paths of all scenes that were asked about and have cameras; and which data isn't here.

    Datasets are told apart by their settings: two may have scenes of one name.
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
            for scene in test_scenes(same[0]) if frames else ():
                if scene.name in frames and scene.cameras is not None:
                    poses = json.loads(scene.cameras.read_text(encoding="utf-8"))["world_to_camera"]
                    if (path := flat_path(poses, frames[scene.name])) is not None:
                        found[scene.name] = path
        except (ArgumentError, OSError, ValueError, KeyError) as error:
            absent.append(f"{same[0].name}: no camera paths, its data can't be read: {' '.join(str(error).split())}")
        datasets.append(found)
    return CameraPaths(datasets, [distinct.index(source) for source in sources]), absent


def test_scenes(run: Run) -> list[Scene]:
    """The test scenes of the dataset that a run's config names, which is not made if it isn't there."""
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(SceneSource, "source")
    named = run.setting("data", "source")
    source = Rooms() if named is None else parser.instantiate(parser.parse_object({"source": named})).source
    return list(source.scenes("test"))


def flat_path(world_to_camera: list[Any], frames: Iterable[int]) -> dict[str, Any] | None:
    """One scene's path; None without a known pose.

    Args:
        world_to_camera: a 4 x 4 matrix a frame, OpenCV axes, or None where the pose isn't known.
        frames: those that have to be in the path.
    """
    every = np.linspace(0, len(world_to_camera) - 1, min(POINTS, len(world_to_camera))).round().astype(int)
    wanted = sorted({*every.tolist(), *(frame for frame in frames if 0 <= frame < len(world_to_camera))})
    kept = [frame for frame in wanted if world_to_camera[frame] is not None]
    if not kept:
        return None
    poses = np.array([world_to_camera[frame] for frame in kept], float)
    rotation, translation = poses[:, :3, :3], poses[:, :3, 3]
    centers = -np.einsum("nij,ni->nj", rotation, translation)
    level = centers @ _level_axes(-rotation[:, 1].mean(0)).T  # OpenCV's y, the second row, points down
    low, high = level.min(0), level.max(0)
    side = max(float((high - low).max()), 1e-6)
    xy = ((level - (low + high) / 2) / side * (1, -1) + 0.5) * SIDE
    return {"frames": kept, "xy": xy.round().astype(int).tolist(), "meters": round(side, 2)}


def _level_axes(up: Float[np.ndarray, 3]) -> Float[np.ndarray, "2 3"]:
    """Right and forward of a map whose up is given, along an axis of the world where one is level."""
    up = up / max(float(np.linalg.norm(up)), 1e-9)
    axis = np.eye(3)[np.abs(up).argmin()]
    right = axis - (axis @ up) * up
    right /= np.linalg.norm(right)
    return np.stack((right, np.cross(up, right)))
