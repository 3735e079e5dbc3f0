"""Readers of camera poses: COLMAP, nerfstudio, Record3D, ScanNet(++), 7-Scenes, TUM RGB-D, ARKitScenes, ViPE.

Each returns a `Trajectory`: world-to-camera poses with OpenCV axes.
"""

from __future__ import annotations

import math
import sys
import warnings
from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
import torch
from jaxtyping import Float64
from torch import Tensor
from tqdm import tqdm

from datamodules.trajectories.base import (
    UNREADABLE,
    FrameTrajectory,
    Match,
    PoseFormat,
    Trajectory,
    from_axis_angle,
    neighbors_in_time,
    upright_turns,
)
from datamodules.video import IMAGE_SUFFIXES, image_size, natural_key
from zoo.cameras.poses import invert_se3, nearest_rotation, quaternion_to_rotation, rigid_matrix
from zoo.errors import InputError
from zoo.files.atomic_io import read_json

# ---- COLMAP ---------------------------------------------------------------------------------------------------------

# parameters of each camera model without distortion: f, cx, cy or fx, fy, cx, cy
PARAMETERS = {"SIMPLE_PINHOLE": 3, "SIMPLE_RADIAL": 3, "RADIAL": 3, "PINHOLE": 4, "OPENCV": 4, "FULL_OPENCV": 4}


class COLMAP(PoseFormat):
    """A reconstruction in COLMAP's text format (Schönberger and Frahm, CVPR 2016), in an arbitrary unit of length.

        <scene>/sparse/0/cameras.txt   CAMERA_ID MODEL WIDTH HEIGHT PARAMS...
        <scene>/sparse/0/images.txt    IMAGE_ID QW QX QY QZ TX TY TZ CAMERA_ID NAME: world-to-camera; a line of points
        <scene>/images/NAME

    Frames are in natural order of their names. Pixels are measured from the corner of the image, as in this project.
    Lens distortion is not modeled: fisheye images must be undistorted first, and the slight distortion of other lenses
    is ignored.

    Args:
        model: The folder of the two files, relative to the folder of the scene.
        images: The folder of the images, relative to the folder of the scene.
    """

    marker = "sparse/0/cameras.*"
    is_metric = False

    def __init__(self, model: str = "sparse/0", images: str = "images") -> None:
        self.model, self.images = model, images

    def read(self, folder: Path) -> Trajectory:
        """Read the registered images."""
        model = folder / self.model
        file, listing = model / "cameras.txt", model / "images.txt"
        if not file.is_file() and (model / "cameras.bin").is_file():
            convert = f"colmap model_converter --input_path {model} --output_path {model} --output_type TXT"
            raise FileNotFoundError(f"{file} is absent, there is the binary format alone: {convert}")
        cameras = {row[0]: row[1:] for line in _lines(file) if (row := line.split())}
        rows = sorted(_images(listing), key=lambda row: natural_key(row[-1]))
        if not rows:
            raise ValueError(f"{listing}: no images in it: COLMAP has registered none")
        names, poses, K_px, sizes = [], [], [], set()
        for row in rows:
            try:
                kind, width, height, *parameters = cameras[row[8]]
                *focal, cx, cy = map(float, parameters[: PARAMETERS[kind]])
                poses.append([float(word) for word in row[1:8]])
                K_px.append(intrinsics(focal[0], focal[-1], cx, cy))
                names.append(row[9])
                sizes.add((int(width), int(height)))
            except (IndexError, KeyError, ValueError) as error:
                damage = f"it is damaged, or its camera is none of {', '.join(PARAMETERS)}: undistort the images first"
                raise ValueError(f"{listing}: image {row[0]}: {damage} ({error!r})") from error
        numbers = torch.tensor(poses, dtype=torch.float64)
        world_to_camera = rigid_matrix(quaternion_to_rotation(numbers[:, [1, 2, 3, 0]]), numbers[:, 4:])
        frames = listed_frames([folder / self.images / name for name in names], listing)
        return Trajectory(world_to_camera, torch.stack(K_px), *one_size(sizes, file), None, frames)


def _images(listing: Path) -> Iterator[list[str]]:
    """Yield the words of each image, with the name last. The line of points after it may be empty."""
    lines = iter(_lines(listing))
    for line in lines:
        if line.strip():
            yield line.split(maxsplit=9)
            next(lines, "")


def _lines(file: Path) -> list[str]:
    """Return the lines of a file except comments, with empty lines."""
    try:
        text = file.read_text(encoding="utf-8-sig")
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{file} is absent: export the model as text again") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{file}: not a text file ({error}): export the model as text again") from error
    return [line for line in text.splitlines() if not line.startswith("#")]


# ---- Nerfstudio, ScanNet++ and Record3D: JSON -----------------------------------------------------------------------

PHONE_PX = (1920, 1440)  # width and height of the frames of ScanNet++'s iPhone
# OpenGL cameras look along -z with y up
OPENCV_FROM_OPENGL = torch.diag(torch.tensor([1.0, -1.0, -1.0, 1.0], dtype=torch.float64))


class Nerfstudio(PoseFormat):
    """A capture with transforms.json: camera-to-world with OpenGL axes (x right, y up, z back).

    Frames are in natural order of their names. Frames marked `is_bad` have no pose. Lens distortion is not modeled:
    fisheye frames must be undistorted first, and the slight distortion of other lenses is ignored.

    Args:
        file: The file of poses, relative to the folder of the scene.
        images: The folder to which `file_path` is relative, in the folder of the scene. null uses the file's folder.
    """

    marker = "transforms.json"
    is_metric = False  # except for captures of phone apps

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


class Record3D(PoseFormat):
    """ARKit's poses as stored by Record3D: an unzipped .r3d file, or an export as EXR and JPG.

        <scene>/metadata or metadata.json   JSON: w, h, poses, perFrameIntrinsicCoeffs or K, frameTimestamps or fps
        <scene>/rgbd/N.jpg or rgb/N.jpg

    A pose is qx qy qz qw tx ty tz: camera-to-world in meters, with axes as in ARKit and OpenGL (x right, y up, z back).
    perFrameIntrinsicCoeffs are fx, fy, cx, cy of each frame. K is a 3x3 matrix in column order. The app's depth is not
    read.
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


# ---- ScanNet and 7-Scenes: one pose file per image ------------------------------------------------------------------


class ScanNet(PoseFormat):
    """A scene exported by ScanNet's SensReader (arXiv 1702.04405).

        <scene>/color/N.jpg
        <scene>/pose/N.txt                      4x4 camera-to-world
        <scene>/intrinsic/intrinsic_color.txt   4x4, in pixels of the color frames
        <scene>/depth/N.png                     optional, millimeters

    Poses are not finite where tracking was lost.
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
        K_px: Fx, fy, cx, cy in pixels. The dataset states one camera for all sequences.
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
        poses: File of each image with a 4x4 camera-to-world matrix. Missing or not finite where the pose is unknown.
        depth: Depth image of each image. They are used if all exist.
        K_px: Intrinsics of all images.

    Raises:
        ValueError: A file is damaged or holds no rigid transform, or two images share a pose.
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


# ---- TUM RGB-D and ARKitScenes: images and poses with separate timestamps, matched by time --------------------------

ARKIT_TOLERANCE_S = 0.2  # poses are recorded at 10 Hz, and some are missing


class TUM(PoseFormat):
    """A sequence of the TUM RGB-D benchmark (Sturm et al., IROS 2012).

        <scene>/groundtruth.txt   time tx ty tz qx qy qz qw: camera-to-world
        <scene>/rgb.txt           time filename

    Args:
        K_px: Fx, fy, cx, cy in pixels. The dataset lists them per device, and recommends the default for all.
        trajectory: The file of poses.
        tolerance_s: Maximum time between an image and its poses, in seconds.
        match: "slerp" interpolates between the poses around an image, "nearest" takes the nearest.
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
        """Read a sequence. Poses are matched to images by time."""
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
        <scene>/lowres_depth/<scene>_<time>.png               optional: depth of the frames, also for a video

    Raw frames have the orientation of the device. The videos of VSI-Bench are upright. Frames and cameras are turned
    upright by the world's z axis, as the dataset's own tools do.

    Args:
        frames: Folder of the frames, with `<frames>_intrinsics` beside it: lowres_wide, vga_wide or wide.
        upright: Turn images upright. Set it to false for videos in the device's orientation.
        video_depth: Also give each frame of a video the depth image nearest in time. Each is a link, or a file of about
            40 KB if images are turned.
    """

    marker = "lowres_wide.traj"

    def __init__(self, frames: str = "lowres_wide", upright: bool = True, video_depth: bool = False) -> None:
        self.frames, self.upright, self.video_depth = frames, upright, video_depth

    def read_track(self, folder: Path) -> Trajectory:
        """Read all poses with their timestamps and, with `video_depth`, the depth images with theirs."""
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
        """Read the frames. Poses are matched by time."""
        frames = sorted((folder / self.frames).glob("*.png"), key=_time_s)
        require_any(frames, f"{folder / self.frames}: no frames there: download them, or name their `videos`")
        times_s = [_time_s(frame) for frame in frames]
        K_px, _, _ = self._cameras(folder, np.array(times_s))
        depth = all_or_none([folder / "lowres_depth" / frame.name for frame in frames])
        track = self.read_track(folder).at(times_s, ARKIT_TOLERANCE_S)
        return replace(track, K_px=K_px, frames=tuple(frames), depth=depth)

    def _cameras(self, folder: Path, times_s: Float64[np.ndarray, " N"]) -> tuple[Float64[Tensor, "N 3 3"], int, int]:
        """Return the intrinsics nearest in time, the width and the height."""
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
    """Read rows that begin with a timestamp, sorted by time. Of several rows with one timestamp, the first is kept."""
    rows = read_numbers(file, columns)
    if not np.isfinite(rows[:, 0]).all():
        raise ValueError(f"{file}: a pose without a time, which is the first number of a row: download it again")
    times, first = np.unique(rows[:, 0], return_index=True)
    if len(np.unique(rows, axis=0)) > len(times):
        tqdm.write(f"{file}: several poses have the same time: the first of them is taken", file=sys.stderr)
    return torch.from_numpy(rows[first])


def _time_s(file: Path) -> float:
    """Return the timestamp in a name such as 41069025_1234.567.png."""
    try:
        return finite_number(file.stem.rsplit("_", 1)[1])
    except (IndexError, ValueError) as error:
        raise ValueError(f"{file}: no time in its name, such as 41069025_1234.567{file.suffix}") from error


# ---- ViPE -----------------------------------------------------------------------------------------------------------


MOST_FRAMES = 10**7  # of a video; larger numbers are no frames


class ViPE(PoseFormat):
    """Poses of a video by ViPE (arXiv 2508.10934), as in Cambrian-P-Data, in an arbitrary unit of length.

        <scene>/pose/<scene>.npz   data (N, 4, 4): camera-to-world with OpenCV axes; inds (N,): the frame of each pose

    Frames that are not in `inds` have no pose. The files hold no intrinsics.

    Args:
        focal: Focal length to assume, in longer sides of the video. Cambrian-P's loader assumes 1.2.

    Raises:
        InputError: No focal length is given.
    """

    marker = "pose/*.npz"
    is_metric = False

    def __init__(self, focal: float | None = None) -> None:
        if focal is None or not 0 < focal < math.inf:
            remedy = "give a focal length to assume, in longer sides of the video: --poses ViPE --poses.focal 1.2"
            raise InputError(f"ViPE's poses have no intrinsics: {remedy}")
        self.focal = focal

    def read(self, folder: Path) -> Trajectory:
        """Raise ValueError, because the poses have no images."""
        raise ValueError(f"{folder}: ViPE's poses are of a video's frames: name it with --video, or --videos")

    def read_track(self, folder: Path) -> FrameTrajectory:
        """Read the poses of a video's frames."""
        file, *others = sorted(folder.glob(self.marker)) or [folder / "pose"]
        if others or not file.is_file():
            raise ValueError(f"{folder / 'pose'}: a scene has one file .npz there: unpack it again")
        try:
            with np.load(file) as content:
                poses, frames = np.asarray(content["data"], np.float64), content["inds"]
        except (*UNREADABLE, EOFError, BadZipFile) as error:
            raise ValueError(f"{file}: no arrays `data` and `inds` ({error!r}): download it again") from error
        if frames.ndim != 1 or not len(frames) or poses.shape != (len(frames), 4, 4):
            shapes = f"`data` {poses.shape} and `inds` {frames.shape}"
            raise ValueError(f"{file}: {shapes}, expected (N, 4, 4) and (N,): download it again")
        known_numbers = frames.dtype.kind in "iu" and (frames[1:] > frames[:-1]).all()
        if not known_numbers or not 0 <= frames[0] <= frames[-1] < MOST_FRAMES:
            raise ValueError(f"{file}: `inds` are not increasing numbers of frames, from 0: download it again")
        world_to_camera = torch.full((int(frames[-1]) + 1, 4, 4), torch.nan, dtype=torch.float64)
        known = from_camera_to_world(torch.from_numpy(poses), str(file), "row")
        world_to_camera[torch.from_numpy(frames.astype(np.int64))] = known
        K = intrinsics(self.focal, self.focal, 0.5, 0.5).expand(len(world_to_camera), 3, 3)
        return FrameTrajectory(world_to_camera, K, 1, 1)


# ---- Shared by the readers ------------------------------------------------------------------------------------------

LAST_ROW_TOLERANCE = 1e-3  # for poses in text files


def all_or_none(depth: Sequence[Path]) -> tuple[Path, ...]:
    """Return the depth images if all exist, else none. A partial set is reported."""
    absent = [image for image in depth if not image.is_file()]
    if absent and len(absent) < len(depth):
        message = f"{absent[0]}: absent, as are {len(absent)} of {len(depth)} depth images: the scene has no depth"
        tqdm.write(message, file=sys.stderr)
    return () if absent else tuple(depth)


def listed_frames(frames: Sequence[Path], listing: Path) -> tuple[Path, ...]:
    """Check the frames that a file lists. FileNotFoundError names the first that is missing."""
    if absent := next((frame for frame in frames if not frame.is_file()), None):
        raise FileNotFoundError(f"{absent} is absent, but listed in {listing}: copy it there")
    return tuple(frames)


def require_any(files: Sequence[Path], message: str) -> None:
    """Raise FileNotFoundError with this message if there are no files."""
    if not files:
        raise FileNotFoundError(message)


def one_size(sizes: Collection[tuple[int, int]], file: Path) -> tuple[int, int]:
    """Return the width and height of all frames. Raise ValueError if they differ."""
    if len(sizes) != 1:
        raise ValueError(f"{file}: frames of {len(sizes)} sizes: all must have the same")
    return next(iter(sizes))


def load_table(path: Path, dtype: type = float) -> np.ndarray:
    """Read rows of words, like numpy's `loadtxt` but without warnings about comments and empty files."""
    with warnings.catch_warnings(action="ignore"):
        return np.loadtxt(path, dtype, ndmin=2, encoding="utf-8-sig")  # some editors write a byte order mark


def read_numbers(path: Path, columns: int, rows: int | None = None) -> Float64[np.ndarray, "N columns"]:
    """Read a table of numbers separated by white space. # starts a comment.

    Args:
        path: The file.
        columns: Numbers per row.
        rows: Number of rows. None accepts one or more.

    Raises:
        FileNotFoundError: The file is missing.
        ValueError: The table has another shape.
    """
    try:
        table = load_table(path)
    except ValueError as error:
        raise ValueError(f"{path}: not a table of numbers ({error}): download it again") from error
    if table.shape != (rows or len(table), columns):
        found, expected = f"{len(table)} rows of {table.shape[1]}", f"{rows or 'any number'} of {columns}"
        raise ValueError(f"{path}: {found} numbers, expected {expected}: download it again")
    return table


def finite_number(text: str) -> float:
    """Parse a number. Raise ValueError if it is not finite."""
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text} is not finite")
    return number


def intrinsics(fx: float, fy: float, cx: float, cy: float) -> Float64[Tensor, "3 3"]:
    """Return the intrinsic matrix of a pinhole camera in pixels."""
    return torch.tensor([[fx, 0, cx], [0, fy, cy], [0, 0, 1]], dtype=torch.float64)


def from_camera_to_world(
    camera_to_world: Float64[Tensor, "N 4 4"], source: str, unit: str = "frame"
) -> Float64[Tensor, "N 4 4"]:
    """Convert to world-to-camera poses. A non-finite pose becomes NaN.

    Args:
        camera_to_world: Poses.
        source: File or folder of the poses, for the error message.
        unit: Name of the item that one pose belongs to, for the error message.

    Raises:
        ValueError: A rotation is off orthonormal by more than 1e-2, or a last row is not 0 0 0 1: a matrix in column
            order would lose its translation. The message names the first such pose.
    """
    is_unknown = ~camera_to_world.isfinite().flatten(1).all(1)
    is_off = (camera_to_world[:, 3] - camera_to_world.new_tensor([0, 0, 0, 1])).abs().amax(1) > LAST_ROW_TOLERANCE
    if bad := (is_off & ~is_unknown).nonzero().flatten().tolist():
        row = " ".join(f"{value:.4g}" for value in camera_to_world[bad[0], 3].tolist())
        raise ValueError(
            f"{source}: {unit} {bad[0]}: the last row of its pose is {row}, not 0 0 0 1: is it transposed?"
        )
    rotations = camera_to_world[:, :3, :3].clone()
    rotations[is_unknown] = torch.eye(3, dtype=rotations.dtype)
    poses = invert_se3(rigid_matrix(nearest_rotation(rotations, source, unit), camera_to_world[:, :3, 3]))
    poses[is_unknown] = torch.nan
    return poses
