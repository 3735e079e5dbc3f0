"""cameras.json: the camera of each raw frame of a video.

    {"width": 640, "height": 480, "K_px": [[585, 0, 320], [0, 585, 240], [0, 0, 1]],
     "world_to_camera": [[[...], [...], [...], [0, 0, 0, 1]], ...], "times_s": [0.0, ...]}

World-to-camera, OpenCV axes (x right, y down, z forward), meters; null for a frame whose pose is not known. K_px,
in pixels of the upright video, is one 3x3 for all frames or one for each. times_s is optional: when the pictures of
a folder were taken; a video file says so itself.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float, Float64
from torch import Tensor

from zoo.cameras import normalize_intrinsics
from zoo.poses import nearest_rotation


def read_cameras(
    path: str | Path, num_frames: int, height: int, width: int
) -> tuple[Float64[Tensor, "N 4 4"], Float64[Tensor, "N 3 3"]]:
    """(world_to_camera, K_normalized), one of each for every raw frame; all NaN is a pose that is not known.

    Rotations are projected to SO(3); K_normalized is as `zoo.cameras.normalize_intrinsics` has it.

    Args:
        num_frames, height, width: of the video that the cameras belong to, in frames and pixels.

    Raises:
        ValueError: one line with the file and, where there is one, the frame: malformed JSON, a wrong number
            of poses, none that is known, poses that aren't finite or rigid (off by more than 1e-2), K_px of another
            image size.
    """
    path = Path(path)
    content = _load(path)
    if (content["width"], content["height"]) != (width, height):
        stated = f"{content['width']} x {content['height']}"
        raise ValueError(f"{path}: K_px is for {stated} pixels, the video has {width} x {height}: scale it")
    poses, known = _poses(path, content["world_to_camera"])
    if len(poses) != num_frames:
        raise ValueError(f"{path}: {len(poses)} poses for a video of {num_frames} frames: give one a frame, or null")
    if not known.any():
        raise ValueError(f"{path}: no frame has a pose: leave the file out, or write it again")
    _require(path, "pose is not a rigid transform: its last row must be 0 0 0 1", _ends_in_unit_row(poses))
    poses[:, :3, :3] = nearest_rotation(poses[:, :3, :3], str(path), "frame")
    poses[~known] = torch.nan

    K_px = _matrices(path, "K_px", content["K_px"], 3)
    if len(K_px) not in (1, num_frames):
        raise ValueError(f"{path}: {len(K_px)} intrinsics for {num_frames} frames: give one, or one a frame")
    fine = (K_px[:, 0, 0] > 0) & (K_px[:, 1, 1] > 0) & _ends_in_unit_row(K_px)
    _require(path, "K_px needs positive focal lengths and a last row of 0 0 1", fine)
    return poses, normalize_intrinsics(K_px, width, height).expand(num_frames, 3, 3)


def read_times(path: str | Path, num_frames: int) -> list[float] | None:
    """When each raw frame was taken, in seconds; None where the file doesn't say.

    Raises:
        ValueError: one line with the file: times that aren't a number a frame, or that go back.
    """
    times_s = _load(Path(path)).get("times_s")
    if times_s is None:
        return None
    numbers = isinstance(times_s, list) and all(isinstance(time_s, (int, float)) for time_s in times_s)
    if not numbers or len(times_s) != num_frames or any(b < a for a, b in pairwise(times_s)):
        raise ValueError(f"{path}: times_s must be {num_frames} rising numbers, one a frame: write it again")
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
    """Writes cameras.json; its numbers read back exactly, and a pose that isn't finite as one that isn't known.

    width, height: the video's size in pixels.
    """
    content: dict[str, Any] = {"width": width, "height": height, "K_px": K_px.tolist()}
    known = world_to_camera.isfinite().all(-1).all(-1).tolist()
    content["world_to_camera"] = [pose if k else None for pose, k in zip(world_to_camera.tolist(), known, strict=True)]
    if times_s is not None:
        content["times_s"] = list(times_s)
    Path(path).write_text(json.dumps(content), encoding="utf-8")


def _load(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"{path}: can't be read ({error.strerror})") from error
    except ValueError as error:
        raise ValueError(f"{path}: not valid JSON ({error}): write it again") from error
    keys = ("width", "height", "K_px", "world_to_camera")
    absent = [key for key in keys if key not in content] if isinstance(content, dict) else keys
    if absent:
        raise ValueError(f"{path}: no {', '.join(absent)}: a cameras file needs {', '.join(keys)}")
    return content


def _poses(path: Path, rows: Any) -> tuple[Float64[Tensor, "N 4 4"], Bool[Tensor, " N"]]:
    """(poses, which of them are known); the others are identities."""
    unit = torch.eye(4).tolist()
    filled = [unit if row is None else row for row in rows] if isinstance(rows, list) else rows
    poses = _matrices(path, "world_to_camera", filled, 4)
    return poses, torch.tensor([row is not None for row in rows[: len(poses)]])


def _matrices(path: Path, key: str, rows: Any, side: int) -> Float64[Tensor, "N side side"]:
    """A list of finite matrices; a single one counts as a list of one."""
    try:
        matrices = torch.tensor(rows, dtype=torch.float64)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path}: {key} must hold {side}x{side} matrices of numbers ({error})") from error
    if matrices.ndim == 2:
        matrices = matrices[None]
    if matrices.shape[1:] != (side, side):
        shape = tuple(matrices.shape)
        raise ValueError(f"{path}: {key} must hold {side}x{side} matrices, it has shape {shape}")
    _require(
        path, f"{key} holds NaN or infinite numbers (what isn't known is null)", matrices.isfinite().all(-1).all(-1)
    )
    return matrices


def _ends_in_unit_row(matrices: Tensor) -> Tensor:
    unit = torch.eye(matrices.shape[-1], dtype=matrices.dtype)[-1]
    return (matrices[:, -1] - unit).abs().amax(-1) < 1e-6


def _require(path: Path, what: str, fine: Tensor) -> None:
    """ValueError that names the first frame that isn't fine."""
    if not fine.all():
        raise ValueError(f"{path}: frame {int((~fine).nonzero()[0])}: {what}")
