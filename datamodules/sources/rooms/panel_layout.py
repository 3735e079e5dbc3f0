"""Panels, empty rooms and cameras at their stations, from which the tasks of `panel_tasks` are drawn."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from jaxtyping import Bool, Float64, Int

from datamodules.sources.rooms.layout import draw_shell, look, ring_along_walls
from datamodules.sources.rooms.renderer import PLAIN
from datamodules.sources.rooms.scene import Material, Part, RoomScene, Thing, Vector, to_vector
from zoo.sequences.layout import TEMPORAL_PATCH_SIZE

COLORS: dict[str, Vector] = {"red": (0.9, 0.04, 0.04), "blue": (0.05, 0.1, 0.9)}
THICKNESS_M = 0.02  # of a panel
MARGIN_M = 0.05  # between a panel and the ends of its wall
WALLS = ((0, -1), (0, 1), (1, -1), (1, 1))  # axis and side of each wall

ROOM_SIDE_M = (6.0, 7.0)  # length and width of a room
CEILING_M = (2.4, 3.0)
HALL_M = 42.0  # sides of a hall, so large that no camera sees the end of a wall
GRAY = (0.5, 0.9)  # brightness of walls, floor and ceiling

INSET_M = (1.0, 1.2)  # distance of the camera from the walls
EYE_HEIGHT_M = (1.3, 1.7)
LOOK_ASIDE_DEG = 10.0  # largest angle between the view and the normal of the ring
LEVEL_M, PITCH_RAD, ROLL_RAD = 0.1, 0.1, 0.05  # largest deviations of a station
SHAKE_M, SHAKE_DEG = 0.02, 1.5  # between the frames of a station
JITTER = 0.5  # relative to the distance between two stations
PERIMETER_STEPS = 720


# ---- Panels: on the walls or free, their places, and the cameras that see them --------------------------------------


def hang(color: str, center: Float64[np.ndarray, " 3"], wall: int | np.integer, width: float, height: float) -> Thing:
    """Hang a plain panel on a wall."""
    size = np.array([width, width, height])
    size[WALLS[wall][0]] = THICKNESS_M
    return _panel(color, center, size, 0.0)


def stand(color: str, center: Float64[np.ndarray, " 3"], direction: float, width: float, height: float) -> Thing:
    """Stand a plain panel upright in the room, perpendicular to a horizontal direction in radians."""
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
        distances: Distances in meters.
        eye: The point, in the room's frame.
        room: The room.
        height: Height of the center above the floor.
        width: Width of the panel.
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
    angles: Float64[np.ndarray, " n"], eyes: Float64[np.ndarray, "n 3"], room: RoomScene, width: float
) -> tuple[Float64[np.ndarray, "n 3"], Int[np.ndarray, " n"]]:
    """Find the centers of panels in horizontal directions from points, and their walls. NaN beyond the end of a wall.

    Args:
        angles: Directions in radians.
        eyes: The points, in the room's frame. A panel hangs at the same height.
        room: The room.
        width: Width of the panels.
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
    """Return whether a camera sees the center of a panel away from the border of the frame.

    Args:
        centers: Centers of the panels, in the room's frame.
        camera_from_room: Poses of the cameras.
        K_px: Intrinsics. The principal point is the center of the frame.
        within: Central share of the frame in which the center must lie.
    """
    x, y, z = np.moveaxis(camera_from_room[:, :3, :3] @ centers.T + camera_from_room[:, :3, 3:], 1, 0)
    across = [K_px[i, i] / K_px[i, 2] * np.abs(offset) < within * z for i, offset in enumerate((x, y))]
    return across[0] & across[1]  # z is positive there


# ---- Empty rooms, and cameras at their stations ---------------------------------------------------------------------


def draw_room(rng: np.random.Generator) -> RoomScene:
    """Draw an empty room."""
    return plain_room(np.array([*rng.uniform(*ROOM_SIDE_M, 2), rng.uniform(*CEILING_M)]), rng)


def plain_room(size: Float64[np.ndarray, " 3"], rng: np.random.Generator, unit: float = 1.0) -> RoomScene:
    """Draw the surfaces of a room in faint grays, so that a panel's color stands out.

    Args:
        size: Length, width and height in meters.
        rng: Random generator.
        unit: Scale of the textures in meters.
    """
    room = draw_shell(size, unit, rng)
    values = rng.uniform(*GRAY, len(room.surfaces))
    surfaces = (
        replace(surface, pattern=int(rng.integers(PLAIN)), colors=((value,) * 3, (0.8 * value,) * 3))
        for surface, value in zip(room.surfaces, values.tolist(), strict=True)
    )
    return replace(room, surfaces=tuple(surfaces))


def draw_tour(
    room: RoomScene, frames: int, rng: np.random.Generator, frames_per_station: int = TEMPORAL_PATCH_SIZE
) -> Float64[np.ndarray, "T 4 4"]:
    """Draw the path of a camera that looks at the walls from stations near them, in random order.

    Args:
        room: The room.
        frames: Number of frames.
        rng: Random generator.
        frames_per_station: Adjacent frames with nearly the same view.

    Returns:
        Poses from the room's frame (OpenCV axes, meters).
    """
    ring = ring_along_walls(np.array(room.size), rng.uniform(*EYE_HEIGHT_M), rng.uniform(*INSET_M), rng)
    angles = np.linspace(0, 2 * np.pi, PERIMETER_STEPS + 1)
    walked = np.linalg.norm(np.diff(ring.points(angles), axis=0), axis=1).cumsum()
    share = draw_shares(frames // frames_per_station, rng)
    angle = np.interp((share + rng.random()) % 1 * walked[-1], [0.0, *walked], angles)
    aside = np.deg2rad(LOOK_ASIDE_DEG) * rng.uniform(-1, 1, len(angle))
    return look_from(ring.points(angle), ring.outward(angle) + aside, ring.center[2], frames_per_station, rng)


def draw_shares(stations: int, rng: np.random.Generator) -> Float64[np.ndarray, " n"]:
    """Draw the stations' places along a line of length 1: nearly even steps, in random order."""
    jitter = JITTER * rng.uniform(-0.5, 0.5, stations)
    return rng.permutation((np.arange(stations) + 0.5 + jitter) / stations)


def look_from(
    plan: Float64[np.ndarray, "n 2"], yaw: Float64[np.ndarray, " n"], eye_height: float, frames_per_station: int,
    rng: np.random.Generator,
) -> Float64[np.ndarray, "T 4 4"]:  # fmt: skip
    """Return the poses of a shaky camera at stations, from the room's frame (OpenCV axes, meters).

    Args:
        plan: Places of the stations in plan.
        yaw: Viewing directions in plan, in radians.
        eye_height: Height above the floor.
        frames_per_station: Adjacent frames with nearly the same view.
        rng: Random generator.
    """
    each = np.arange(len(plan)).repeat(frames_per_station)
    frames, shake = len(each), np.deg2rad(SHAKE_DEG)
    level, pitch, roll = rng.uniform(-1, 1, (3, len(plan)))[:, each] * [[LEVEL_M], [PITCH_RAD], [ROLL_RAD]]
    eyes = np.column_stack([plan[each], eye_height + level]) + rng.uniform(-SHAKE_M, SHAKE_M, (frames, 3))
    turns = np.stack([yaw[each], pitch, roll]) + rng.uniform(-shake, shake, (3, frames))
    return look(eyes, *turns)
