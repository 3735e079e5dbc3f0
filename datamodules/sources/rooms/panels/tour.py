"""Tours of empty rooms: the camera looks at the walls from stations near them, which it visits in random order.

Each station has two frames, a temporal patch. The order of the frames says nothing about where a station is: a panel's
frame number and its place are independent.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float64

from datamodules.sources.rooms.layout import draw_shell
from datamodules.sources.rooms.paths import look, ring_along_walls
from datamodules.sources.rooms.scene import RoomScene
from zoo.sequences.visual_grid import TEMPORAL_PATCH_SIZE

SIDE_M = (6.0, 7.0)  # length and width of all rooms
CEILING_M = (2.4, 3.0)
INSET_M = (0.9, 1.1)  # of the camera from the walls
EYE_HEIGHT_M = (1.3, 1.7)
LOOK_ASIDE_DEG = 10.0  # at most, from the normal of the ring
SHAKE_M, SHAKE_DEG = 0.02, 1.5  # between the two frames of a station
JITTER = 0.5  # of the distance between two stations
PERIMETER_STEPS = 720


def draw_room(rng: np.random.Generator) -> RoomScene:
    """Draw an empty room."""
    size = np.array([*rng.uniform(*SIDE_M, 2), rng.uniform(*CEILING_M)])
    return draw_shell(size, 1.0, rng)


def draw_tour(room: RoomScene, frames: int, rng: np.random.Generator) -> Float64[np.ndarray, "T 4 4"]:
    """Draw a camera path around a room, from the room's frame (OpenCV axes, meters).

    The stations are spread along the walls, and visited in random order.

    Args:
        room: The room.
        frames: Number of frames, even.
        rng: Random generator.
    """
    stations = frames // TEMPORAL_PATCH_SIZE
    ring = ring_along_walls(np.array(room.size), rng.uniform(*EYE_HEIGHT_M), rng.uniform(*INSET_M), rng)
    angles = np.linspace(0, 2 * np.pi, PERIMETER_STEPS + 1)
    corners = ring.points(angles)
    walked = np.concatenate([[0.0], np.linalg.norm(np.diff(corners, axis=0), axis=1).cumsum()])
    share = (np.arange(stations) + JITTER * rng.uniform(-0.5, 0.5, stations)) / stations
    share = (rng.permutation(share) + rng.random()) % 1
    angle = np.interp(share * walked[-1], walked, angles).repeat(TEMPORAL_PATCH_SIZE)

    def vary(station: float, frame: float) -> np.ndarray:
        drawn = rng.uniform(-station, station, stations).repeat(TEMPORAL_PATCH_SIZE)
        return drawn + rng.uniform(-frame, frame, frames)

    shake = np.deg2rad(SHAKE_DEG)
    eyes = np.column_stack([ring.points(angle), vary(0.1, SHAKE_M) + ring.center[2]])
    eyes[:, :2] += rng.uniform(-SHAKE_M, SHAKE_M, (frames, 2))
    yaw = ring.outward(angle) + vary(np.deg2rad(LOOK_ASIDE_DEG), shake)
    return look(eyes, yaw, vary(0.1, shake), vary(0.05, shake))
