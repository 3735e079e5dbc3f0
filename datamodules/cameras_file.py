"""cameras.json: the camera of each raw frame of a video.

    {"width": 640, "height": 480, "K_px": [[585, 0, 320], [0, 585, 240], [0, 0, 1]],
     "world_to_camera": [[[...], [...], [...], [0, 0, 0, 1]], ...], "times_s": [0.0, ...]}

Poses are world-to-camera with OpenCV axes (x right, y down, z forward) in meters. A frame without a pose is null. K_px
is in pixels of the upright video: one 3x3 matrix for all frames or one per frame. times_s is optional and holds the
timestamps of a folder of frames. Video files have timestamps of their own.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float, Float64
from torch import Tensor

from zoo.cameras import normalize_intrinsics
from zoo.cameras.poses import nearest_rotation
from zoo.files.atomic_io import read_json, write_whole


def read_cameras(
    path: str | Path, num_frames: int, height: int, width: int
) -> tuple[Float64[Tensor, "N 4 4"], Float64[Tensor, "N 3 3"]]:
    """Read the cameras of all raw frames. Rotations are projected to SO(3).

    Args:
        path: The cameras file.
        num_frames: Raw frames of the video.
        height: Height of the video in pixels.
        width: Width of the video in pixels.

    Returns:
        world_to_camera, NaN for a frame without a pose, and K_normalized, see `zoo.cameras.normalize_intrinsics`.

    Raises:
        ValueError: The JSON is malformed, the number of poses is wrong, no frame has a pose, poses are not finite or
            not rigid (to 1e-2), or K_px is for another image size. The message is one line with the file and, where
            possible, the frame.
    """
    path = Path(path)
    content = _load(path)
    if (content["width"], content["height"]) != (width, height):
        stated = f"{content['width']} x {content['height']}"
        raise ValueError(f"{path}: K_px is for {stated} pixels, the video has {width} x {height}: scale it")
    return _cameras(path, content, num_frames)


def read_cameras_alone(path: str | Path) -> tuple[Float64[Tensor, "N 4 4"], Float64[Tensor, "N 3 3"]]:
    """Read the cameras file of a video, as `read_cameras` does, without checking it against the video.

    Raises:
        ValueError: See `read_cameras`.
    """
    return _cameras(Path(path), _load(Path(path)))


def read_times(path: str | Path, num_frames: int) -> list[float] | None:
    """Read the timestamps of all raw frames in seconds, or return None if the file has none.

    Args:
        path: The cameras file.
        num_frames: Raw frames of the video.

    Raises:
        ValueError: There is not one finite timestamp per frame, or timestamps decrease.
    """
    times_s = _load(Path(path)).get("times_s")
    if times_s is None:
        return None
    is_valid = isinstance(times_s, list) and all(_is_finite(time_s) for time_s in times_s)
    if not is_valid or len(times_s) != num_frames or times_s != sorted(times_s):
        raise ValueError(f"{path}: times_s must be {num_frames} increasing numbers, one per frame: write it again")
    return [float(time_s) for time_s in times_s]


def write_cameras(
    path: str | Path,
    world_to_camera: Float[Tensor, "N 4 4"],
    K_px: Float[Tensor, "*one_or_N 3 3"],
    *,
    width: int,
    height: int,
    times_s: Sequence[float] | None = None,
) -> None:
    """Write a cameras file atomically. Numbers keep all their digits.

    Args:
        path: The cameras file.
        world_to_camera: One pose per raw frame. A pose that isn't finite is written as null.
        K_px: Intrinsics in pixels, one for all frames or one per frame.
        width: Width of the video in pixels.
        height: Height of the video in pixels.
        times_s: Timestamps of the raw frames in seconds.
    """
    content: dict[str, Any] = {"width": width, "height": height, "K_px": K_px.tolist()}
    content["world_to_camera"] = [pose.tolist() if pose.isfinite().all() else None for pose in world_to_camera]
    if times_s is not None:
        content["times_s"] = list(times_s)
    write_whole(Path(path), json.dumps(content))


def _load(path: Path) -> dict[str, Any]:
    content = read_json(path, "write it again")
    keys = ("width", "height", "K_px", "world_to_camera")
    absent = [key for key in keys if key not in content] if isinstance(content, dict) else keys
    if absent:
        raise ValueError(f"{path}: no {', '.join(absent)}: a cameras file needs {', '.join(keys)}")
    for key in ("width", "height"):
        if isinstance(content[key], bool) or not isinstance(content[key], (int, float)) or content[key] % 1:
            raise ValueError(f"{path}: {key} must be a whole number of pixels, not {content[key]!r}")
    return content


def _cameras(
    path: Path, content: dict[str, Any], num_frames: int | None = None
) -> tuple[Float64[Tensor, "N 4 4"], Float64[Tensor, "N 3 3"]]:
    """Check the content of a cameras file and return its cameras; num_frames None accepts any number of frames."""
    poses = _rigid_poses(path, content["world_to_camera"])
    num_frames = len(poses) if num_frames is None else num_frames
    if len(poses) != num_frames:
        raise ValueError(f"{path}: {len(poses)} poses for a video of {num_frames} frames: write a pose or null each")
    K_px = _matrices(path, "K_px", content["K_px"], 3)
    if len(K_px) not in (1, num_frames):
        raise ValueError(f"{path}: {len(K_px)} intrinsics for {num_frames} frames: provide one, or one per frame")
    is_valid = (K_px[:, 0, 0] > 0) & (K_px[:, 1, 1] > 0) & _has_unit_last_row(K_px)
    _require(path, "K_px needs positive focal lengths and a last row of 0 0 1", is_valid)
    return poses, normalize_intrinsics(K_px, content["width"], content["height"]).expand(num_frames, 3, 3)


def _rigid_poses(path: Path, rows: Any) -> Float64[Tensor, "N 4 4"]:
    """Return the poses with rotations projected to SO(3), and NaN in place of null."""
    poses, has_pose = _poses(path, rows)
    if not has_pose.any():
        raise ValueError(f"{path}: no frame has a pose: remove the file, or write it again")
    _require(path, "pose is not a rigid transform: its last row must be 0 0 0 1", _has_unit_last_row(poses))
    poses[:, :3, :3] = nearest_rotation(poses[:, :3, :3], str(path), "frame")
    poses[~has_pose] = torch.nan
    return poses


def _poses(path: Path, rows: Any) -> tuple[Float64[Tensor, "N 4 4"], Bool[Tensor, " N"]]:
    """Return the poses with an identity in place of null, and a mask of the poses that are not null."""
    identity = torch.eye(4).tolist()
    filled = [identity if row is None else row for row in rows] if isinstance(rows, list) else rows
    poses = _matrices(path, "world_to_camera", filled, 4)
    return poses, torch.tensor([row is not None for row in rows[: len(poses)]])


def _matrices(path: Path, key: str, rows: Any, side: int) -> Float64[Tensor, "N side side"]:
    """Parse finite matrices from a list of matrices or from a single matrix."""
    try:
        matrices = torch.tensor(rows, dtype=torch.float64)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path}: {key} must hold {side}x{side} matrices of numbers ({error})") from error
    if matrices.ndim == 2:
        matrices = matrices[None]
    if matrices.shape[1:] != (side, side):
        raise ValueError(f"{path}: {key} must hold {side}x{side} matrices, its shape is {tuple(matrices.shape)}")
    is_finite = matrices.isfinite().flatten(1).all(1)
    _require(path, f"{key} holds NaN or infinite numbers (null is an unknown pose)", is_finite)
    return matrices


def _is_finite(value: Any) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value)


def _has_unit_last_row(matrices: Tensor) -> Tensor:
    unit = torch.eye(matrices.shape[-1], dtype=matrices.dtype)[-1]
    return (matrices[:, -1] - unit).abs().amax(-1) < 1e-6


def _require(path: Path, message: str, is_valid: Tensor) -> None:
    """Raise ValueError with the first invalid frame."""
    if not is_valid.all():
        raise ValueError(f"{path}: frame {int((~is_valid).nonzero()[0])}: {message}")
