"""transforms.json of nerfstudio and ScanNet++."""

from __future__ import annotations

from pathlib import Path

import torch

from datamodules.cameras_file import read_json
from datamodules.trajectories.base import (
    PoseFormat,
    Trajectory,
    from_camera_to_world,
    intrinsics,
    listed_frames,
    one_size,
)
from datamodules.video import natural_key
from zoo.cameras.poses import rigid_matrix
from zoo.geometry.layers import quaternion_to_rotation

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


# ---- Recordings of the iPhone and iPad app Record3D -----------------------------------------------------------------


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
