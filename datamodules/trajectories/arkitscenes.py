"""ARKitScenes, raw data: timestamped poses in lowres_wide.traj, intrinsics in .pincam files."""

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
    neighbors_in_time,
    read_numbers,
    rigid,
    upright_turns,
)
from datamodules.trajectories.rotations import from_axis_angle

TOLERANCE_S = 0.2  # poses are recorded at 10 Hz, with some missing


class ARKitScenes(PoseFormat):
    """A scene of ARKitScenes' raw data (arXiv 2111.08897).

        <scene>/lowres_wide.traj                              time, axis-angle, translation: world-to-camera
        <scene>/lowres_wide_intrinsics/<scene>_<time>.pincam  width height fx fy cx cy
        <scene>/lowres_wide/<scene>_<time>.png                optional: frames
        <scene>/lowres_depth/<scene>_<time>.png               optional: depth of the frames

    Raw frames have the orientation of the device; the videos of VSI-Bench are upright. Frames and cameras are turned
    upright by the world's z axis, as by the dataset's own tools.

    Args:
        frames: Folder of the frames, with `<frames>_intrinsics` beside it: lowres_wide, vga_wide or wide.
        upright: Turn images upright; false for videos in the device's orientation.
    """

    def __init__(self, frames: str = "lowres_wide", upright: bool = True) -> None:
        self.frames, self.upright = frames, upright

    def read_track(self, folder: Path) -> Trajectory:
        """Reads all poses with their timestamps."""
        table = read_numbers(folder / "lowres_wide.traj", 7)
        if not len(table):
            raise ValueError(f"{folder / 'lowres_wide.traj'}: no poses in it: download it again")
        table = table[np.argsort(table[:, 0], kind="stable")]
        poses = rigid(from_axis_angle(torch.from_numpy(table[:, 1:4])), torch.from_numpy(table[:, 4:7]))
        turns = upright_turns(poses) if self.upright else 0
        K_px, width, height = self._cameras(folder, table[:, 0])
        return Trajectory(poses, K_px, width, height, torch.from_numpy(table[:, 0].copy()), quarter_turns=turns)

    def read(self, folder: Path) -> Trajectory:
        """Reads the frames; poses are matched by time."""
        frames = sorted((folder / self.frames).glob("*.png"), key=_time_s)
        if not frames:
            raise FileNotFoundError(f"{folder / self.frames}: no frames there: download them, or name their `videos`")
        times_s = [_time_s(frame) for frame in frames]
        K_px, _, _ = self._cameras(folder, np.array(times_s))
        depth = all_or_none([folder / "lowres_depth" / frame.name for frame in frames])
        track = self.read_track(folder).at(times_s, TOLERANCE_S)
        return replace(track, K_px=K_px, frames=tuple(frames), depth=depth)

    def _cameras(self, folder: Path, times_s: Float64[np.ndarray, " N"]) -> tuple[Float64[Tensor, "N 3 3"], int, int]:
        """Intrinsics nearest in time, width and height."""
        folder = folder / f"{self.frames}_intrinsics"
        files = sorted(folder.glob("*.pincam"), key=_time_s)
        if not files:
            raise FileNotFoundError(f"{folder}: no .pincam files: download the scene's {folder.name}")
        rows = np.concatenate([read_numbers(file, 6)[:1] for file in files])
        if len(rows) != len(files) or (rows[:, :2] != rows[0, :2]).any():
            raise ValueError(f"{folder}: .pincam files need one row each, all with one size: download them again")
        *_, nearest = neighbors_in_time(np.array([_time_s(file) for file in files]), times_s)
        K_px = torch.stack([intrinsics(*row[2:]) for row in rows.tolist()])
        return K_px[torch.from_numpy(nearest)], int(rows[0, 0]), int(rows[0, 1])


def _time_s(file: Path) -> float:
    """The timestamp in a name such as 41069025_1234.567.png."""
    try:
        return float(file.stem.rsplit("_", 1)[1])
    except (IndexError, ValueError) as error:
        raise ValueError(f"{file}: no time in its name, such as 41069025_1234.567{file.suffix}") from error
