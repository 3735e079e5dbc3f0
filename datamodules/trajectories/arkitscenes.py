"""ARKitScenes, raw: poses by time in lowres_wide.traj, intrinsics in .pincam files."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float64
from torch import Tensor

from datamodules.trajectories.base import (
    PoseFormat,
    Trajectory,
    all_or_none,
    intrinsics,
    read_numbers,
    rigid,
    upright_turns,
)
from datamodules.trajectories.rotations import from_axis_angle

TOLERANCE_S = 0.2  # poses come ten times a second, some are left out


class ARKitScenes(PoseFormat):
    """A scene of ARKitScenes' raw data (arXiv 2111.08897).

        <scene>/lowres_wide.traj                              time, axis-angle, translation: world-to-camera
        <scene>/lowres_wide_intrinsics/<scene>_<time>.pincam  width height fx fy cx cy
        <scene>/lowres_wide/<scene>_<time>.png                optional: the frames
        <scene>/lowres_depth/<scene>_<time>.png               optional: their depth

    The frames lie as the device was held; videos of VSI-Bench were turned upright. Both are shown upright here, by
    the world's z axis, as the data set's own tools do it, and the cameras turn with them.

    Args:
        frames: folder of the frames, with `<frames>_intrinsics` beside it: lowres_wide, vga_wide or wide.
        upright: turn the pictures upright; false for videos that were left as they are.
    """

    def __init__(self, frames: str = "lowres_wide", upright: bool = True) -> None:
        self.frames, self.upright = frames, upright

    def read_track(self, folder: Path) -> Trajectory:
        table = read_numbers(folder / "lowres_wide.traj", 7)
        if not len(table):
            raise ValueError(f"{folder / 'lowres_wide.traj'}: no poses in it: download it again")
        table = table[np.argsort(table[:, 0], kind="stable")]
        rotation = from_axis_angle(torch.from_numpy(table[:, 1:4]))
        poses = rigid(rotation, torch.from_numpy(table[:, 4:7]))
        times_s = torch.from_numpy(table[:, 0].copy())
        width, height, cameras = _pincams(folder / f"{self.frames}_intrinsics")
        turns = upright_turns(poses) if self.upright else 0
        K_px = _nearest_in_time(cameras, table[:, 0])
        return Trajectory(poses, K_px, width, height, times_s, quarter_turns=turns)

    def read(self, folder: Path) -> Trajectory:
        frames = sorted((folder / self.frames).glob("*.png"), key=_time_s)
        if not frames:
            raise FileNotFoundError(f"{folder / self.frames}: no frames there: download them, or name their `videos`")
        times_s = [_time_s(frame) for frame in frames]
        depth = tuple(folder / "lowres_depth" / frame.name for frame in frames)
        return replace(
            self.read_track(folder).at(times_s, TOLERANCE_S),
            K_px=_nearest_in_time(_pincams(folder / f"{self.frames}_intrinsics")[2], np.array(times_s)),
            frames=tuple(frames),
            depth=all_or_none(depth),
        )


def _pincams(folder: Path) -> tuple[int, int, dict[float, Float64[Tensor, "3 3"]]]:
    """(width, height, intrinsics by time)."""
    files = sorted(folder.glob("*.pincam"), key=_time_s)
    if not files:
        raise FileNotFoundError(f"{folder}: no .pincam files: download the scene's {folder.name}")
    rows = np.concatenate([read_numbers(file, 6)[:1] for file in files])
    if len(rows) != len(files) or (rows[:, :2] != rows[0, :2]).any():
        raise ValueError(f"{folder}: its .pincam files need a row each, all with one size: download them again")
    width, height = (int(side) for side in rows[0, :2])
    return width, height, {_time_s(file): intrinsics(*row[2:]) for file, row in zip(files, rows.tolist(), strict=True)}


def _nearest_in_time(
    cameras: dict[float, Float64[Tensor, "3 3"]], times_s: Float64[np.ndarray, " N"]
) -> Float64[Tensor, "N 3 3"]:
    own = np.array(list(cameras))
    after = np.searchsorted(own, times_s).clip(0, len(own) - 1)
    before = (after - 1).clip(0)
    nearest = np.where(np.abs(times_s - own[before]) <= np.abs(own[after] - times_s), before, after)
    return torch.stack(list(cameras.values()))[torch.from_numpy(nearest)]


def _time_s(file: Path) -> float:
    """The time in a name such as 41069025_1234.567.png."""
    try:
        return float(file.stem.rsplit("_", 1)[1])
    except (IndexError, ValueError) as error:
        raise ValueError(f"{file}: no time in its name, such as 41069025_1234.567{file.suffix}") from error
