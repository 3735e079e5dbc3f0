"""What formats of poses have in common: lists of frames, tables of numbers, poses and intrinsics, and their errors."""

from __future__ import annotations

import math
import sys
import warnings
from collections.abc import Collection, Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float64
from torch import Tensor
from tqdm import tqdm

from zoo.cameras.poses import invert_se3, nearest_rotation, rigid_matrix

LAST_ROW_TOLERANCE = 1e-3  # of poses in a text file


def all_or_none(depth: Sequence[Path]) -> tuple[Path, ...]:
    """The depth images if all exist, else none; a partial set is reported."""
    absent = [image for image in depth if not image.is_file()]
    if absent and len(absent) < len(depth):
        message = f"{absent[0]}: absent, as are {len(absent)} of {len(depth)} depth images: the scene has no depth"
        tqdm.write(message, file=sys.stderr)
    return () if absent else tuple(depth)


def listed_frames(frames: Sequence[Path], listing: Path) -> tuple[Path, ...]:
    """The frames that a file lists; FileNotFoundError names the first that is absent."""
    if absent := next((frame for frame in frames if not frame.is_file()), None):
        raise FileNotFoundError(f"{absent} is absent, but listed in {listing}: copy it there")
    return tuple(frames)


def require_any(files: Sequence[Path], message: str) -> None:
    """Raise FileNotFoundError, in one line with the remedy, if a capture has none of some files."""
    if not files:
        raise FileNotFoundError(message)


def one_size(sizes: Collection[tuple[int, int]], file: Path) -> tuple[int, int]:
    """The width and height of all frames; ValueError if they differ."""
    if len(sizes) != 1:
        raise ValueError(f"{file}: frames of {len(sizes)} sizes: all must have the same")
    return next(iter(sizes))


def load_table(path: Path, dtype: type = float) -> np.ndarray:
    """Read rows of words; like numpy's `loadtxt`, but without warnings about comments and empty files."""
    with warnings.catch_warnings(action="ignore"):
        return np.loadtxt(path, dtype, ndmin=2, encoding="utf-8-sig")  # some editors write a mark of the encoding


def read_numbers(path: Path, columns: int, rows: int | None = None) -> Float64[np.ndarray, "N columns"]:
    """Read a table of numbers separated by white space; # starts a comment.

    Args:
        path: The file.
        columns: Numbers per row.
        rows: Number of rows; None is at least one.

    Raises:
        FileNotFoundError: The file is absent.
        ValueError: The file holds another table.
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
    """The number that a text stands for; ValueError if it is not finite."""
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text} is not finite")
    return number


def intrinsics(fx: float, fy: float, cx: float, cy: float) -> Float64[Tensor, "3 3"]:
    """Intrinsic matrix of a pinhole camera in pixels."""
    return torch.tensor([[fx, 0, cx], [0, fy, cy], [0, 0, 1]], dtype=torch.float64)


def from_camera_to_world(
    camera_to_world: Float64[Tensor, "N 4 4"], source: str, unit: str = "frame"
) -> Float64[Tensor, "N 4 4"]:
    """World-to-camera poses; a non-finite pose becomes NaN.

    Args:
        camera_to_world: Poses.
        source: File or folder of the poses, for the error.
        unit: What one pose belongs to, for the error.

    Raises:
        ValueError: With the first pose whose rotation is off orthonormal by more than 1e-2, or whose last row is not
            0 0 0 1: a matrix that is written by columns would lose its translation.
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
