"""Motion of a hand-held camera in a room: around the room near the walls, or around a spot.

Both follow a ring for a little more than one turn, at uneven speed, with pauses in which the camera rotates in place,
and with a segment that is traversed back and forth.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64


@dataclass(frozen=True)
class Ring:
    """A rounded rectangle in the room's frame.

    Attributes:
        center: In meters; z is the mean height of the camera.
        reach: Half the length and width in meters.
        squareness: Exponent of the superellipse: 2 is an ellipse, larger is closer to a rectangle.
    """

    center: tuple[float, float, float]
    reach: tuple[float, float]
    squareness: float

    def points(self, angle: Float64[np.ndarray, " n"]) -> Float64[np.ndarray, "n 2"]:
        """Points in plan, in meters, in the directions `angle` of the ring scaled to a square."""
        cos, sin = np.cos(angle), np.sin(angle)
        radius = (np.abs(cos) ** self.squareness + np.abs(sin) ** self.squareness) ** (-1 / self.squareness)
        return np.stack([radius * cos, radius * sin], 1) * self.reach + self.center[:2]

    def outward(self, angle: Float64[np.ndarray, " n"]) -> Float64[np.ndarray, " n"]:
        """Direction of the outward normal at `points(angle)`, in radians."""
        cos, sin = np.cos(angle), np.sin(angle)
        power, (x, y) = self.squareness - 1, self.reach
        return np.arctan2(np.sign(sin) * np.abs(sin) ** power / y, np.sign(cos) * np.abs(cos) ** power / x)


def ring_along_walls(size: Float64[np.ndarray, " 3"], height: float, inset: float, rng: np.random.Generator) -> Ring:
    """A ring at a distance from the walls, as far as the room is wide enough.

    Args:
        size: Size of the room in meters.
        height: Height of the camera in meters.
        inset: Distance from the walls in meters.
        rng: Draws the squareness.
    """
    half = size[:2] / 2
    x, y = (half - np.minimum(inset, half * 0.6)).tolist()
    return Ring((0.0, 0.0, float(height)), (x, y), rng.uniform(6.0, 12.0))


def walk(ring: Ring, frames: int, rng: np.random.Generator) -> Float64[np.ndarray, "T 4 4"]:
    """Poses along a ring, from the room's frame to the camera (OpenCV axes, meters), within `ring.reach`."""
    speed = rng.gamma(3.0, size=frames - 1) * (1 + 0.6 * smooth_noise(frames - 1, 6, rng))
    turn = np.zeros(frames - 1)
    for _ in range(rng.integers(1, 3)):  # pause and look around
        start, length = rng.integers(frames - 1), rng.integers(2, max(3, frames // 10) + 1)
        speed[start : start + length] = 0
        turn[start : start + length] += rng.choice([-1, 1]) * rng.uniform(0.15, 0.5)
    start, length = rng.integers(frames - 1), rng.integers(frames // 12 + 1, frames // 8 + 2)
    speed[start : start + length] *= -1  # walk back
    progress = np.concatenate([[0.0], np.cumsum(speed)])
    sweep = rng.uniform(1.05, 1.35) * 2 * np.pi * rng.choice([-1, 1])
    angle = rng.uniform(0, 2 * np.pi) + progress / np.ptp(progress) * sweep

    radius = 1 - 0.08 * rng.random() * (0.5 + 0.5 * smooth_noise(frames, 5, rng))
    radius /= radius.max()
    cos, sin = np.cos(angle), np.sin(angle)
    power = 1 / ring.squareness
    radius = radius * (np.abs(cos) ** ring.squareness + np.abs(sin) ** ring.squareness) ** -power
    reach_x, reach_y = ring.reach
    bob = 0.04 * min(ring.reach) * smooth_noise(frames, 8, rng)
    eyes = np.stack([reach_x * radius * cos, reach_y * radius * sin, bob], 1) + ring.center

    # look across the ring, with a bias to one side and a slowly varying direction; rotations of pauses decay
    pauses = np.concatenate([[0.0], np.cumsum(turn)])
    pauses -= np.linspace(0, pauses[-1], frames) * rng.uniform(0.5, 1)
    inward = np.arctan2(-reach_y * sin, -reach_x * cos)
    yaw = inward + rng.uniform(-0.9, 0.9) + 0.6 * smooth_noise(frames, 6, rng) + pauses
    pitch = rng.uniform(-0.35, 0.0) + 0.22 * smooth_noise(frames, 7, rng)
    roll = 0.06 * smooth_noise(frames, 7, rng)
    return look(eyes, yaw, pitch, roll)


def smooth_noise(length: int, knots: int, rng: np.random.Generator) -> Float64[np.ndarray, " n"]:
    """Smooth interpolation of random knots in -1..1."""
    position = np.linspace(0, knots - 1, length)
    low = np.minimum(position.astype(int), knots - 2)
    blend = position - low
    blend = blend * blend * (3 - 2 * blend)
    values = rng.uniform(-1, 1, knots)
    return values[low] * (1 - blend) + values[low + 1] * blend


def look(
    eyes: Float64[np.ndarray, "T 3"], yaw: np.ndarray, pitch: np.ndarray, roll: np.ndarray
) -> Float64[np.ndarray, "T 4 4"]:
    """Poses from the room's frame to cameras (OpenCV axes, meters).

    Args:
        eyes: Camera centers.
        yaw: Viewing directions in plan, in radians.
        pitch: Their angles above the horizon.
        roll: Rotations about the viewing directions.
    """
    forward = np.stack([np.cos(yaw) * np.cos(pitch), np.sin(yaw) * np.cos(pitch), np.sin(pitch)], 1)
    level = np.stack([np.sin(yaw), -np.cos(yaw), np.zeros(len(yaw))], 1)
    down = np.cross(forward, level)
    cos, sin = np.cos(roll)[:, None], np.sin(roll)[:, None]
    matrix = np.tile(np.eye(4), (len(eyes), 1, 1))
    matrix[:, :3, :3] = np.stack([cos * level + sin * down, cos * down - sin * level, forward], 1)
    matrix[:, :3, 3] = -np.einsum("tij,tj->ti", matrix[:, :3, :3], eyes)
    return matrix
