"""Panels: on the walls or free, the places at given distances, and the cameras that see a panel whole."""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float64, Int

from datamodules.sources.rooms.scene import Material, Part, RoomScene, Thing, Vector, to_vector

COLORS: dict[str, Vector] = {"red": (0.9, 0.04, 0.04), "blue": (0.05, 0.1, 0.9)}
THICKNESS_M = 0.02
MARGIN_M = 0.05  # between a panel and the ends of its wall
WALLS = ((0, -1), (0, 1), (1, -1), (1, 1))  # axis and side


def hang(color: str, center: Float64[np.ndarray, " 3"], wall: int | np.integer, width: float, height: float) -> Thing:
    """Hang a plain panel on a wall."""
    size = np.array([width, width, height])
    size[WALLS[wall][0]] = THICKNESS_M
    return _panel(color, center, size, 0.0)


def stand(color: str, center: Float64[np.ndarray, " 3"], direction: float, width: float, height: float) -> Thing:
    """Stand a plain panel in the room, upright to a horizontal direction in radians."""
    return _panel(color, center, np.array([THICKNESS_M, width, height]), direction)


def _panel(color: str, center: Float64[np.ndarray, " 3"], size: Float64[np.ndarray, " 3"], yaw: float) -> Thing:
    material = Material(0, (COLORS[color], COLORS[color]), 1.0, (0.0, 0.0))
    part = Part((0.0, 0.0, 0.0), to_vector(size), material)
    return Thing(f"{color} panel", to_vector(center), to_vector(size), yaw, (part,))


def places_at(
    distances: Float64[np.ndarray, " d"], eye: Float64[np.ndarray, " 3"], room: RoomScene, height: float, width: float
) -> Float64[np.ndarray, "d 8 3"]:
    """Find the centers of panels at exact distances from a point: up to two on each of the four walls, else NaN.

    Args:
        distances: In meters.
        eye: The point, in the room's frame.
        room: The room.
        height: Of the center above the floor.
        width: Of the panel.
    """
    places = np.full((len(distances), len(WALLS), 2, 3), np.nan)
    for wall, (axis, side) in enumerate(WALLS):
        along, plane = 1 - axis, side * (room.size[axis] - THICKNESS_M) / 2
        reach = distances**2 - (plane - eye[axis]) ** 2 - (height - eye[2]) ** 2
        with np.errstate(invalid="ignore"):
            offset = np.sqrt(reach)[:, None] * [-1, 1]
        at = eye[along] + offset
        at[~(np.abs(at) <= (room.size[along] - width) / 2 - MARGIN_M)] = np.nan
        places[:, wall, :, along], places[:, wall, :, axis], places[:, wall, :, 2] = at, plane, height
    places[np.isnan(places).any(-1)] = np.nan
    return places.reshape(len(distances), -1, 3)


def places_towards(
    angles: Float64[np.ndarray, " n"],
    eyes: Float64[np.ndarray, "n 3"],
    room: RoomScene,
    width: float,
) -> tuple[Float64[np.ndarray, "n 3"], Int[np.ndarray, " n"]]:
    """Find the centers of panels, and their walls, in horizontal directions from points; NaN beyond the wall's end.

    Args:
        angles: Directions in radians.
        eyes: The points, in the room's frame; a panel hangs as high.
        room: The room.
        width: Of the panels.
    """
    steps = np.stack([np.cos(angles), np.sin(angles)], 1)
    planes = np.copysign((np.array(room.size[:2]) - THICKNESS_M) / 2, steps)
    reach = (planes - eyes[:, :2]) / steps
    axes = reach.argmin(1)
    places = eyes.copy()
    places[:, :2] += reach.min(1)[:, None] * steps
    along = np.take_along_axis(places, 1 - axes[:, None], 1)[:, 0]
    places[np.abs(along) > (np.array(room.size)[1 - axes] - width) / 2 - MARGIN_M] = np.nan
    return places, 2 * axes + (steps[np.arange(len(axes)), axes] > 0)


def seen(
    centers: Float64[np.ndarray, "n 3"],
    camera_from_room: Float64[np.ndarray, "T 4 4"],
    K_px: Float64[np.ndarray, "3 3"],
    within: float = 0.8,
) -> Bool[np.ndarray, "T n"]:
    """Whether a camera sees the center of a panel, and not at the border of the frame.

    Args:
        centers: Of the panels, in the room's frame.
        camera_from_room: Poses.
        K_px: Intrinsics; the principal point is the center of the frame.
        within: Share of the frame around its center.
    """
    x, y, z = np.moveaxis(camera_from_room[:, :3, :3] @ centers.T + camera_from_room[:, :3, 3:], 1, 0)
    across = [K_px[i, i] / K_px[i, 2] * np.abs(offset) < within * z for i, offset in enumerate((x, y))]
    return across[0] & across[1]  # z is positive there
