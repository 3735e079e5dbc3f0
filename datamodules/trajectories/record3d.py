"""Recordings of the iPhone and iPad app Record3D."""

from __future__ import annotations

from pathlib import Path

import torch

from datamodules.json_files import read_json
from datamodules.trajectories.base import PoseFormat, Trajectory
from datamodules.trajectories.nerfstudio import OPENCV_FROM_OPENGL
from datamodules.trajectories.reading import from_camera_to_world, intrinsics
from datamodules.video import natural_key
from zoo.cameras.poses import rigid_matrix
from zoo.geometry.quaternions import quaternion_to_rotation


class Record3D(PoseFormat):
    """ARKit's poses as Record3D stores them: an unzipped .r3d file, or an export as EXR and JPG.

        <scene>/metadata or metadata.json   JSON: w, h, poses, perFrameIntrinsicCoeffs or K, frameTimestamps or fps
        <scene>/rgbd/N.jpg or rgb/N.jpg

    A pose is qx qy qz qw tx ty tz: camera-to-world in meters, with ARKit's and OpenGL's axes (x right, y up, z back).
    perFrameIntrinsicCoeffs are fx, fy, cx, cy of each frame; K is a 3x3 matrix by columns. The app's depth is not read.
    """

    marker = "metadata*"

    def read(self, folder: Path) -> Trajectory:
        """Read a recording."""
        file = next((path for name in ("metadata", "metadata.json") if (path := folder / name).is_file()), None)
        if file is None:
            raise FileNotFoundError(f"{folder / 'metadata'} is absent: unzip the .r3d file here")
        frames = sorted(
            (*folder.glob("rgbd/*.jpg"), *folder.glob("rgb/*.jpg")), key=lambda path: natural_key(path.name)
        )
        content = read_json(file)
        try:
            rows = torch.tensor(content["poses"], dtype=torch.float64).reshape(-1, 7)
            if not (cameras := content.get("perFrameIntrinsicCoeffs")):
                fx, _, _, _, fy, _, cx, cy, _ = content["K"]
                cameras = [(fx, fy, cx, cy)] * len(rows)
            K_px = torch.stack([intrinsics(*row[:4]) for row in cameras])
            times = content.get("frameTimestamps") or [i / content["fps"] for i in range(len(rows))]
            times_s = torch.tensor(times, dtype=torch.float64)
            width, height = int(content["w"]), int(content["h"])
        except (KeyError, TypeError, ValueError, AttributeError, RuntimeError, ArithmeticError) as error:
            raise ValueError(f"{file}: no metadata of Record3D ({error!r}): export the recording again") from error
        if not len(frames) == len(rows) == len(K_px) == len(times_s) > 0:
            counts = f"{len(frames)} frames .jpg, {len(rows)} poses, {len(K_px)} intrinsics and {len(times_s)} times"
            raise ValueError(f"{file}: {counts}: export the recording again")
        camera_to_world = rigid_matrix(quaternion_to_rotation(rows[:, :4]), rows[:, 4:]) @ OPENCV_FROM_OPENGL
        poses = from_camera_to_world(camera_to_world, str(file))
        return Trajectory(poses, K_px, width, height, times_s, tuple(frames))
