"""Tours of empty rooms: the camera looks at the walls from stations near them, which it visits in random order.

Each station has two frames, a temporal patch. The order of the frames says nothing about where a station is: a panel's
frame number and its place are independent.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from jaxtyping import Float64

from datamodules.sources.rooms import renderer as textures
from datamodules.sources.rooms.layout import draw_shell
from datamodules.sources.rooms.paths import look, ring_along_walls
from datamodules.sources.rooms.scene import RoomScene
from zoo.sequences.layout import TEMPORAL_PATCH_SIZE

SIDE_M = (6.0, 7.0)  # length and width of all rooms
CEILING_M = (2.4, 3.0)
GRAY = (0.5, 0.9)
INSET_M = (1.0, 1.2)  # of the camera from the walls
EYE_HEIGHT_M = (1.3, 1.7)
LOOK_ASIDE_DEG = 10.0  # at most, from the normal of the ring
LEVEL_M, PITCH_RAD, ROLL_RAD = 0.1, 0.1, 0.05  # at most, of a station
SHAKE_M, SHAKE_DEG = 0.02, 1.5  # between the frames of a station
JITTER = 0.5  # of the distance between two stations
PERIMETER_STEPS = 720


def draw_room(rng: np.random.Generator) -> RoomScene:
    """Draw an empty room."""
    return plain_room(np.array([*rng.uniform(*SIDE_M, 2), rng.uniform(*CEILING_M)]), rng)


def plain_room(size: Float64[np.ndarray, " 3"], rng: np.random.Generator, unit: float = 1.0) -> RoomScene:
    """Draw the surfaces of a room in faint grays, on which a panel's color stands out.

    Args:
        size: Length, width and height in meters.
        rng: Random generator.
        unit: Scale of the textures in meters.
    """
    room = draw_shell(size, unit, rng)
    values = rng.uniform(*GRAY, len(room.surfaces))
    surfaces = (
        replace(surface, pattern=int(rng.integers(textures.PLAIN)), colors=((value,) * 3, (0.8 * value,) * 3))
        for surface, value in zip(room.surfaces, values.tolist(), strict=True)
    )
    return replace(room, surfaces=tuple(surfaces))


def draw_tour(
    room: RoomScene, frames: int, rng: np.random.Generator, frames_per_station: int = TEMPORAL_PATCH_SIZE
) -> Float64[np.ndarray, "T 4 4"]:
    """Draw a camera path around a room, from the room's frame (OpenCV axes, meters).

    Args:
        room: The room.
        frames: Number of frames.
        rng: Random generator.
        frames_per_station: Adjacent frames with nearly the same view.
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
    """Poses of a shaky camera at stations, from the room's frame (OpenCV axes, meters).

    Args:
        plan: Places of the stations in plan.
        yaw: Viewing directions in plan, in radians.
        eye_height: Above the floor.
        frames_per_station: Adjacent frames with nearly the same view.
        rng: Random generator.
    """
    each = np.arange(len(plan)).repeat(frames_per_station)
    frames, shake = len(each), np.deg2rad(SHAKE_DEG)
    level, pitch, roll = rng.uniform(-1, 1, (3, len(plan)))[:, each] * [[LEVEL_M], [PITCH_RAD], [ROLL_RAD]]
    eyes = np.column_stack([plan[each], eye_height + level]) + rng.uniform(-SHAKE_M, SHAKE_M, (frames, 3))
    turns = np.stack([yaw[each], pitch, roll]) + rng.uniform(-shake, shake, (3, frames))
    return look(eyes, *turns)
