"""Real rooms as boxes: the room sizes and object boxes behind VSI-Bench's answers.

<folder>/<dataset>_meta_info_val.json   data/meta_info of thinking-in-space: for each scene its `room_size` in
                                        square meters and `object_bbox` {category: [boxes]}, meters, z up
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float64

from datamodules.sources.rooms import geometry
from zoo.errors import InputError

UPRIGHT = 0.9  # cosine of the tilt up to which a box counts as upright


@dataclass(frozen=True)
class RealRoom:
    """Upright boxes in a frame whose x and y axes are along most of them; z is up, the origin is arbitrary.

    Attributes:
        dataset: Name of the dataset.
        name: Name of the scene.
        area: Floor area in square meters.
        categories: Category of each box.
        centers: In meters.
        sizes: Along the axes of each box, in meters.
        yaws: Rotations about z in radians.
    """

    dataset: str
    name: str
    area: float
    categories: tuple[str, ...]
    centers: Float64[np.ndarray, "n 3"]
    sizes: Float64[np.ndarray, "n 3"]
    yaws: Float64[np.ndarray, " n"]

    def content(self) -> dict[str, Any]:
        """All fields as JSON-like content."""
        return {key: value.tolist() if isinstance(value, np.ndarray) else value for key, value in vars(self).items()}


def read_rooms(folder: str | Path) -> list[RealRoom]:
    """Read the rooms of all datasets in a folder, in the order of files and scenes.

    Raises:
        InputError: No such files, or a malformed one.
    """
    folder = Path(folder).expanduser()
    files = sorted(folder.glob("*_meta_info_val.json"))
    if not files:
        raise InputError(
            f"{folder}: no *_meta_info_val.json: get data/meta_info of github.com/vision-x-nyu/thinking-in-space"
        )
    rooms = []
    for file in files:
        try:
            for name, scene in json.loads(file.read_bytes()).items():
                rooms.append(_room(file.name.split("_", 1)[0], name, scene))
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise InputError(f"{file}: not the room sizes and boxes of thinking-in-space ({error!r})") from error
    return rooms


def _room(dataset: str, name: str, scene: dict[str, Any]) -> RealRoom:
    labeled = [(category, _upright(box)) for category, boxes in scene["object_bbox"].items() for box in boxes]
    centers = np.array([center for _, (center, _, _) in labeled]).reshape(-1, 3)
    sizes = np.array([size for _, (_, size, _) in labeled]).reshape(-1, 3)
    yaws = np.array([yaw for _, (_, _, yaw) in labeled])
    turn = _main_direction(sizes, yaws)
    cos, sin = np.cos(turn), np.sin(turn)
    centers[:, :2] = centers[:, :2] @ np.array([[cos, -sin], [sin, cos]])
    return RealRoom(dataset, name, float(scene["room_size"]), tuple(c for c, _ in labeled), centers, sizes, yaws - turn)


def _upright(box: dict[str, Any]) -> tuple[np.ndarray, np.ndarray, float]:
    """Center, size and yaw, with z along the axis that points up; a tilted box is replaced by its upright hull."""
    axes, lengths = np.array(box["normalizedAxes"], float).reshape(3, 3), np.array(box["axesLengths"], float)
    low, high = np.array(box["min"], float), np.array(box["max"], float)
    up = int(np.abs(axes[:, 2]).argmax())
    if abs(axes[up, 2]) < UPRIGHT:
        return (low + high) / 2, high - low, 0.0
    first, second = (axis for axis in range(3) if axis != up)
    yaw = float(np.arctan2(axes[first, 1], axes[first, 0]))
    return np.array(box["centroid"], float), lengths[[first, second, up]], yaw


def _main_direction(sizes: np.ndarray, yaws: np.ndarray) -> float:
    """The angle in -45 to 45 degrees to which most boxes, weighted by footprint, are parallel or perpendicular."""
    weights = sizes[:, 0] * sizes[:, 1]
    return float(np.angle((weights * np.exp(4j * yaws)).sum()) / 4) if len(yaws) else 0.0


def bounds(room: RealRoom) -> tuple[Float64[np.ndarray, " 2"], Float64[np.ndarray, " 2"]]:
    """Lower and upper x and y of all footprints."""
    corners = geometry.footprint(room.centers, room.sizes, room.yaws).reshape(-1, 2)
    return corners.min(0), corners.max(0)
