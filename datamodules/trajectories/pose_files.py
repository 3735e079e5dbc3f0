"""ScanNet and 7-Scenes: one pose file per image."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float64
from torch import Tensor
from tqdm import tqdm

from datamodules.trajectories.base import (
    Match,
    PoseFormat,
    Trajectory,
    all_or_none,
    finite_number,
    from_axis_angle,
    from_camera_to_world,
    intrinsics,
    listed_frames,
    load_table,
    neighbors_in_time,
    read_numbers,
    require_any,
    upright_turns,
)
from datamodules.video import IMAGE_SUFFIXES, image_size
from zoo.cameras.poses import rigid_matrix
from zoo.geometry.layers import quaternion_to_rotation


class ScanNet(PoseFormat):
    """A scene exported by ScanNet's SensReader (arXiv 1702.04405).

        <scene>/color/N.jpg
        <scene>/pose/N.txt                      4x4 camera-to-world
        <scene>/intrinsic/intrinsic_color.txt   4x4, in pixels of the color frames
        <scene>/depth/N.png                     optional, millimeters

    A pose is not finite where tracking was lost.
    """

    marker = "intrinsic/intrinsic_color.txt"

    def read(self, folder: Path) -> Trajectory:
        """Read an exported scene."""
        files = (folder / "color").glob("*")
        images = [file for file in files if file.suffix.lower() in IMAGE_SUFFIXES and file.stem.isdecimal()]
        require_any(images, f"{folder / 'color'}: no frames N.jpg: export them with SensReader")
        images.sort(key=lambda file: int(file.stem))
        K_px = torch.from_numpy(read_numbers(folder / "intrinsic/intrinsic_color.txt", columns=4, rows=4))[:3, :3]
        names = [str(int(image.stem)) for image in images]
        poses = [folder / f"pose/{name}.txt" for name in names]
        return posed_images(images, poses, [folder / f"depth/{name}.png" for name in names], K_px)


class SevenScenes(PoseFormat):
    """A sequence of Microsoft's 7-Scenes, such as redkitchen/seq-01 (Shotton et al., CVPR 2013).

        <scene>/frame-000000.color.png
        <scene>/frame-000000.pose.txt      4x4 camera-to-world
        <scene>/frame-000000.depth.png     optional, millimeters, 65535 where depth is missing

    Args:
        K_px: Fx, fy, cx, cy in pixels; the dataset states one camera for all sequences.
    """

    marker = "frame-*.pose.txt"

    def __init__(self, K_px: tuple[float, float, float, float] = (585.0, 585.0, 320.0, 240.0)) -> None:
        self.K_px = K_px

    def read(self, folder: Path) -> Trajectory:
        """Read an unpacked sequence."""
        images = sorted(file for file in folder.glob("frame-*.color.*") if file.suffix.lower() in IMAGE_SUFFIXES)
        require_any(images, f"{folder}: no frame-*.color.png: unpack the sequence's zip here")
        stems = [folder / image.name.split(".")[0] for image in images]
        poses, depth = ([Path(f"{stem}.{suffix}") for stem in stems] for suffix in ("pose.txt", "depth.png"))
        return posed_images(images, poses, depth, intrinsics(*self.K_px))


def posed_images(
    images: Sequence[Path], poses: Sequence[Path], depth: Sequence[Path], K_px: Float64[Tensor, "3 3"]
) -> Trajectory:
    """Read the poses of images.

    Args:
        images: Images of one size, in order.
        poses: A file of each image with a 4x4 camera-to-world matrix; absent or not finite where the pose is unknown.
        depth: The depth image of each image; used if all exist.
        K_px: Intrinsics of all images.

    Raises:
        ValueError: A file is damaged or holds no rigid transform, or two images have one pose.
    """
    if len(set(poses)) < len(poses):
        twice = next(i for i, file in enumerate(poses) if file in poses[:i])
        raise ValueError(f"{images[twice]}: a second image with the pose {poses[twice].name}: remove one of them")
    matrices = np.full((len(poses), 4, 4), np.nan)
    for matrix, file in zip(matrices, poses, strict=True):
        if file.is_file():
            matrix[:] = read_numbers(file, columns=4, rows=4)
    world_to_camera = from_camera_to_world(torch.from_numpy(matrices), str(poses[0].parent))
    height, width = image_size(images[0])
    K_px = K_px.expand(len(images), 3, 3)
    return Trajectory(world_to_camera, K_px, width, height, None, tuple(images), all_or_none(depth))


# ---- TUM RGB-D and ARKitScenes: images and poses with timestamps of their own, matched by time ----------------------

TOLERANCE_S = 0.2  # ARKitScenes records poses at 10 Hz, with some missing


class TUM(PoseFormat):
    """A sequence of the TUM RGB-D benchmark (Sturm et al., IROS 2012).

        <scene>/groundtruth.txt   time tx ty tz qx qy qz qw: camera-to-world
        <scene>/rgb.txt           time filename

    Args:
        K_px: Fx, fy, cx, cy in pixels; the dataset lists them per device, the default is recommended for all.
        trajectory: The file of poses.
        tolerance_s: Maximum time between an image and its poses, in seconds.
        match: "slerp" between the poses around an image, or the "nearest".
    """

    marker = "groundtruth.txt"

    def __init__(
        self,
        K_px: tuple[float, float, float, float] = (525.0, 525.0, 319.5, 239.5),
        trajectory: str = "groundtruth.txt",
        tolerance_s: float = 0.05,
        match: Match = "slerp",
    ) -> None:
        self.K_px, self.trajectory = K_px, trajectory
        self.tolerance_s, self.match = tolerance_s, match

    def read(self, folder: Path) -> Trajectory:
        """Read a sequence; poses are matched to images by time."""
        listing = folder / "rgb.txt"
        try:
            times, names = load_table(listing, str).T
            images = sorted((finite_number(time), name) for time, name in zip(times, names, strict=True))
        except ValueError as error:
            raise ValueError(f"{listing}: each line must be `time filename` ({error})") from error
        frames = listed_frames([folder / name for _, name in images], listing)
        times_s, poses = read_tum(folder / self.trajectory)
        height, width = image_size(frames[0])
        track = Trajectory(poses, intrinsics(*self.K_px).expand(len(poses), 3, 3), width, height, times_s)
        return replace(track.at([time_s for time_s, _ in images], self.tolerance_s, self.match), frames=frames)


def read_tum(file: Path) -> tuple[Float64[Tensor, " N"], Float64[Tensor, "N 4 4"]]:
    """Read timestamps in seconds and world-to-camera poses, sorted by time.

    Raises:
        ValueError: The file is damaged.
    """
    rows = _read_track(file, 8)
    camera_to_world = rigid_matrix(quaternion_to_rotation(rows[:, 4:]), rows[:, 1:4])
    return rows[:, 0], from_camera_to_world(camera_to_world, str(file), "row")


class ARKitScenes(PoseFormat):
    """A scene of ARKitScenes' raw data (arXiv 2111.08897).

        <scene>/lowres_wide.traj                              time, axis-angle, translation: world-to-camera
        <scene>/lowres_wide_intrinsics/<scene>_<time>.pincam  width height fx fy cx cy
        <scene>/lowres_wide/<scene>_<time>.png                optional: frames
        <scene>/lowres_depth/<scene>_<time>.png               optional: depth of the frames, also of a video's

    Raw frames have the orientation of the device; the videos of VSI-Bench are upright. Frames and cameras are turned
    upright by the world's z axis, as by the dataset's own tools.

    Args:
        frames: Folder of the frames, with `<frames>_intrinsics` beside it: lowres_wide, vga_wide or wide.
        upright: Turn images upright; false for videos in the device's orientation.
        video_depth: Give the frames of a video the depth images that are nearest in time. Each is a link, or a file of
            some 40 KB where images are turned.
    """

    marker = "lowres_wide.traj"

    def __init__(self, frames: str = "lowres_wide", upright: bool = True, video_depth: bool = False) -> None:
        self.frames, self.upright, self.video_depth = frames, upright, video_depth

    def read_track(self, folder: Path) -> Trajectory:
        """Read all poses with their timestamps, and where they are asked for the depth images with theirs."""
        rows = _read_track(folder / "lowres_wide.traj", 7)
        poses = rigid_matrix(from_axis_angle(rows[:, 1:4]), rows[:, 4:7])
        turns = upright_turns(poses) if self.upright else 0
        K_px, width, height = self._cameras(folder, rows[:, 0].numpy())
        track = Trajectory(poses, K_px, width, height, rows[:, 0], quarter_turns=turns)
        if not self.video_depth:
            return track
        depth = sorted((folder / "lowres_depth").glob("*.png"), key=_time_s)
        require_any(depth, f"{folder / 'lowres_depth'}: no depth there: download it, or leave video_depth out")
        depth_times_s = torch.tensor([_time_s(image) for image in depth], dtype=torch.float64)
        return replace(track, depth=tuple(depth), depth_times_s=depth_times_s)

    def read(self, folder: Path) -> Trajectory:
        """Read the frames; poses are matched by time."""
        frames = sorted((folder / self.frames).glob("*.png"), key=_time_s)
        require_any(frames, f"{folder / self.frames}: no frames there: download them, or name their `videos`")
        times_s = [_time_s(frame) for frame in frames]
        K_px, _, _ = self._cameras(folder, np.array(times_s))
        depth = all_or_none([folder / "lowres_depth" / frame.name for frame in frames])
        track = self.read_track(folder).at(times_s, TOLERANCE_S)
        return replace(track, K_px=K_px, frames=tuple(frames), depth=depth)

    def _cameras(self, folder: Path, times_s: Float64[np.ndarray, " N"]) -> tuple[Float64[Tensor, "N 3 3"], int, int]:
        """Intrinsics nearest in time, width and height."""
        folder = folder / f"{self.frames}_intrinsics"
        files = sorted(folder.glob("*.pincam"), key=_time_s)
        require_any(files, f"{folder}: no .pincam files: download the scene's {folder.name}")
        rows = np.concatenate([read_numbers(file, columns=6, rows=1) for file in files])
        if (rows[:, :2] != rows[0, :2]).any():
            raise ValueError(f"{folder}: .pincam files of different image sizes: download them again")
        *_, nearest = neighbors_in_time(np.array([_time_s(file) for file in files]), times_s)
        K_px = torch.stack([intrinsics(*row[2:]) for row in rows.tolist()])
        return K_px[torch.from_numpy(nearest)], int(rows[0, 0]), int(rows[0, 1])


def _read_track(file: Path, columns: int) -> Float64[Tensor, "N columns"]:
    """Read rows that begin with a timestamp, sorted by time; of several with one timestamp, the first."""
    rows = read_numbers(file, columns)
    if not np.isfinite(rows[:, 0]).all():
        raise ValueError(f"{file}: a pose without a time, which is the first number of a row: download it again")
    times, first = np.unique(rows[:, 0], return_index=True)
    if len(np.unique(rows, axis=0)) > len(times):
        tqdm.write(f"{file}: several poses have the same time: the first of them is taken", file=sys.stderr)
    return torch.from_numpy(rows[first])


def _time_s(file: Path) -> float:
    """The timestamp in a name such as 41069025_1234.567.png."""
    try:
        return finite_number(file.stem.rsplit("_", 1)[1])
    except (IndexError, ValueError) as error:
        raise ValueError(f"{file}: no time in its name, such as 41069025_1234.567{file.suffix}") from error
