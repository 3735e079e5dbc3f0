"""transforms.json of nerfstudio and ScanNet++."""

from __future__ import annotations

from pathlib import Path

import torch

from datamodules.json_files import read_json
from datamodules.trajectories.base import PoseFormat, Trajectory
from datamodules.trajectories.reading import from_camera_to_world, intrinsics, listed_frames, one_size
from datamodules.video import natural_key

PHONE_PX = (1920, 1440)  # width and height of the frames of ScanNet++'s iPhone
# OpenGL cameras look along -z with y up
OPENCV_FROM_OPENGL = torch.diag(torch.tensor([1.0, -1.0, -1.0, 1.0], dtype=torch.float64))


class Nerfstudio(PoseFormat):
    """A capture with transforms.json: camera-to-world with OpenGL axes (x right, y up, z back).

    Frames are in natural order of their names; those marked `is_bad` have no pose. Lens distortion is not modeled:
    fisheye frames must be undistorted first, the slight distortion of other lenses is ignored.

    Args:
        file: The file of poses, relative to the folder of the scene.
        images: The folder that `file_path` is relative to, in the folder of the scene; null is the file's folder.
    """

    marker = "transforms.json"
    is_metric = False  # unless the capture is an app's

    def __init__(self, file: str = "transforms.json", images: str | None = None) -> None:
        self.file, self.images = file, images

    def read(self, folder: Path) -> Trajectory:
        """Read a capture."""
        file = folder / self.file
        content = read_json(file)
        rows = content.get("frames") if isinstance(content, dict) else None
        if not isinstance(rows, list) or not rows or not all(isinstance(row, dict) for row in rows):
            raise ValueError(f"{file}: no frames in it: transforms.json needs a list `frames` of objects")
        if "FISHEYE" in str(content.get("camera_model", "")).upper():
            raise ValueError(f"{file}: a fisheye camera: undistort the frames first and name that file")
        start = file.parent if self.images is None else folder / self.images
        poses, K_px, frames, sizes = [], [], [], set()
        for row in sorted(rows, key=lambda row: natural_key(str(row.get("file_path")))):
            pose = torch.eye(4, dtype=torch.float64)
            try:
                cameras = [float(row.get(key, content.get(key))) for key in ("fl_x", "fl_y", "cx", "cy", "w", "h")]
                matrix = torch.tensor(row["transform_matrix"], dtype=torch.float64)
                pose[: max(3, len(matrix))] = matrix  # a last row may be left out
                frames.append(start / row["file_path"])
                sizes.add((int(cameras[4]), int(cameras[5])))
            except (LookupError, TypeError, ValueError, RuntimeError, OverflowError) as error:
                keys = "file_path, a 4x4 transform_matrix and, per frame or for all, fl_x, fl_y, cx, cy, w, h"
                raise ValueError(f"{file}: frame {row.get('file_path')} needs {keys} ({error})") from error
            if row.get("is_bad"):
                pose[:3] = torch.nan
            poses.append(pose)
            K_px.append(intrinsics(*cameras[:4]))
        width, height = one_size(sizes, file)
        world_to_camera = from_camera_to_world(torch.stack(poses) @ OPENCV_FROM_OPENGL, str(file))
        return Trajectory(world_to_camera, torch.stack(K_px), width, height, None, listed_frames(frames, file))


class ScanNetPlusPlus(Nerfstudio):
    """A scene of ScanNet++ (arXiv 2308.11417): undistorted DSLR frames, or a video of the iPhone.

        <scene>/dslr/nerfstudio/transforms_undistorted.json
        <scene>/dslr/resized_undistorted_images/DSC00001.JPG
        <scene>/iphone/pose_intrinsic_imu.json   for videos: `aligned_pose`, camera-to-world with OpenCV axes, and
                                                 `intrinsic` of each frame of 1920 x 1440 pixels

    Args:
        file: The file of poses, relative to the folder of the scene.
        images: The folder of the frames, relative to the folder of the scene.
    """

    marker = "dslr/nerfstudio/transforms_undistorted.json"
    is_metric = True

    def __init__(
        self,
        file: str = "dslr/nerfstudio/transforms_undistorted.json",
        images: str | None = "dslr/resized_undistorted_images",
    ) -> None:
        super().__init__(file, images)

    def read_track(self, folder: Path) -> Trajectory:
        """Read the poses of all frames of the iPhone's video."""
        file = folder / "iphone/pose_intrinsic_imu.json"
        content = read_json(file)
        try:
            rows = [content[name] for name in sorted(content, key=natural_key)]
            poses, K_px = (
                torch.tensor([row[key] for row in rows], dtype=torch.float64) for key in ("aligned_pose", "intrinsic")
            )
            world_to_camera = from_camera_to_world(poses.reshape(-1, 4, 4), str(file))
            return Trajectory(world_to_camera, K_px.reshape(-1, 3, 3), *PHONE_PX)
        except (LookupError, TypeError, RuntimeError) as error:
            raise ValueError(f"{file}: a frame lacks aligned_pose or intrinsic ({error}): download it again") from error
