"""Random furnished rooms: a catalog of furniture, the motion of a hand-held camera, and a layout without collisions.

A scene is drawn without units and then multiplied by one scale: room, furniture, textures, camera height and the `loop`
path. A `loop` video is therefore equally likely at any scale. Only the cameras reveal metric lengths, its frames do
not. A `local` path has a radius in meters. Single frames then carry almost no scale, but the parallax of the video
relates the size of the room to that radius.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import Float64

from datamodules.sources.rooms.renderer import PLAIN, atlas
from datamodules.sources.rooms.scene import (
    Material,
    Part,
    RoomScene,
    Thing,
    Vector,
    footprint,
    footprints_overlap,
    point_distance,
    to_tuples,
    to_vector,
)

AREA_UNITS = (14.0, 26.0)  # before scaling, log-uniform; scaled by SCALE squared: 5 to 58 square meters
SCALE = (0.62, 1.5)  # meters per unit, log-uniform
LOCAL_RADIUS_M = (0.3, 0.8)


# ---- Furniture: shape and size range of each category, with VSI-Bench's names ---------------------------------------

# each box is x0, x1, y0, y1, z0, z1 as fractions of the bounding box (front at y = 1) and a color index
Recipe = tuple[tuple[float | int, ...], ...]


@dataclass(frozen=True)
class Category:
    """A category of furniture. Lengths are in units (meters before scaling).

    Attributes:
        name: Name in VSI-Bench.
        place: On the floor, on the floor with its back to a wall, hung on a wall, or at the ceiling.
        smallest: Smallest length, depth and height.
        largest: Largest length, depth and height.
        colors: Hue, saturation and value of each color of the recipe.
        recipe: Boxes that fill the bounding box.
        bottom: For hung things, range of the lower edge's height.
    """

    name: str
    place: Literal["floor", "wall", "hung", "ceiling"]
    smallest: Vector
    largest: Vector
    colors: tuple[Vector, ...]
    recipe: Recipe
    bottom: tuple[float, float] = (0.0, 0.0)


def _read_categories() -> list[tuple[Category, ...]]:
    """Read the catalog and the moving things from furniture.json.

    A color is a name, or hue, saturation and value. `legs` are the height, thickness and color of a leg in each corner.
    """
    content = json.loads(Path(__file__).with_name("furniture.json").read_text(encoding="utf-8"))
    named = content["colors"]
    for row in content["catalog"] + content["movers"]:
        row["colors"] = [named[color] if isinstance(color, str) else color for color in row["colors"]]
        for top, thick, color in row.pop("legs", ()):
            ends = (0.0, thick), (1 - thick, 1.0)
            row["recipe"] += [(*x, *y, 0.0, top, color) for x in ends for y in ends]
    return [tuple(Category(**to_tuples(row)) for row in content[kind]) for kind in ("catalog", "movers")]


CATALOG, MOVERS = _read_categories()


def draw_parts(category: Category, size: Vector, rng: np.random.Generator) -> tuple[Part, ...]:
    """Draw the boxes of a thing of `size` meters, with random colors and textures."""
    jitter = rng.uniform([-0.03, 0.7, 0.75], [0.03, 1.3, 1.15])
    materials = []
    for hue, saturation, value in category.colors:
        hsv = np.array([hue + jitter[0], saturation * jitter[1], value * jitter[2]])
        hsv += rng.uniform(-1, 1, 3) * [0.015, 0.06, 0.05]
        dark = hsv * [1, 1, rng.uniform(0.5, 0.85)]
        pattern = int(rng.integers(PLAIN)) if rng.random() < 0.7 else draw_pattern(rng)
        period = float(max(size) * np.exp(rng.uniform(np.log(0.2), np.log(2.0))))
        materials.append(Material(pattern, (rgb(hsv), rgb(dark)), period, _phase(rng)))
    extent = np.array(size)
    parts = []
    for x0, x1, y0, y1, z0, z1, color in category.recipe:
        low, high = np.array([x0, y0, z0]), np.array([x1, y1, z1])
        center = tuple(((low + high - 1) / 2 * extent).tolist())
        parts.append(Part(center, tuple(((high - low) * extent).tolist()), materials[int(color)]))
    return tuple(parts)


def draw_surface(low: Vector, high: Vector, unit: float, rng: np.random.Generator) -> Material:
    """Draw the material of a wall, floor or ceiling with hue, saturation and value between low and high."""
    hsv = rng.uniform(low, high)
    other = hsv + rng.uniform([-0.05, -0.15, -0.35], [0.05, 0.25, -0.08])
    period = float(unit * np.exp(rng.uniform(np.log(0.5), np.log(4.0))))
    return Material(draw_pattern(rng), (rgb(hsv), rgb(other)), period, _phase(rng))


def draw_pattern(rng: np.random.Generator) -> int:
    """Draw a pattern of the atlas."""
    return int(rng.integers(len(atlas())))


def rgb(hsv: np.ndarray) -> Vector:
    """Convert hue (periodic), saturation and value (clipped) to RGB in 0..1."""
    hue, saturation, value = hsv[0] % 1, np.clip(hsv[1], 0, 1), np.clip(hsv[2], 0.03, 1)
    ramp = np.clip(np.abs((hue * 6 + np.array([0, 4, 2])) % 6 - 3) - 1, 0, 1)
    red, green, blue = (value * (1 - saturation * (1 - ramp))).tolist()
    return red, green, blue


def _phase(rng: np.random.Generator) -> tuple[float, float]:
    return float(rng.random()), float(rng.random())


# ---- Motion of a hand-held camera: around the room near the walls, or around a spot ---------------------------------
# Both paths follow a ring for a little more than one turn, at uneven speed. The camera pauses and rotates in place, and
# it walks one segment back and forth


@dataclass(frozen=True)
class Ring:
    """A rounded rectangle in the room's frame.

    Attributes:
        center: Center in meters. z is the mean height of the camera.
        reach: Half the length and half the width in meters.
        squareness: Exponent of the superellipse. 2 is an ellipse; larger values approach a rectangle.
    """

    center: tuple[float, float, float]
    reach: tuple[float, float]
    squareness: float

    def points(self, angle: Float64[np.ndarray, " n"]) -> Float64[np.ndarray, "n 2"]:
        """Return points in plan, in meters. `angle` is the direction if the ring were scaled to a square."""
        cos, sin = np.cos(angle), np.sin(angle)
        radius = (np.abs(cos) ** self.squareness + np.abs(sin) ** self.squareness) ** (-1 / self.squareness)
        return np.stack([radius * cos, radius * sin], 1) * self.reach + self.center[:2]

    def outward(self, angle: Float64[np.ndarray, " n"]) -> Float64[np.ndarray, " n"]:
        """Return the direction of the outward normal at `points(angle)`, in radians."""
        cos, sin = np.cos(angle), np.sin(angle)
        power, (x, y) = self.squareness - 1, self.reach
        return np.arctan2(np.sign(sin) * np.abs(sin) ** power / y, np.sign(cos) * np.abs(cos) ** power / x)


def ring_along_walls(size: Float64[np.ndarray, " 3"], height: float, inset: float, rng: np.random.Generator) -> Ring:
    """Return a ring at a distance from the walls, or closer to them in a narrow room.

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
    """Draw poses along a ring, from the room's frame to the camera (OpenCV axes, meters), inside `ring.reach`."""
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

    # look across the ring, with a random offset and a slowly varying direction; the rotations of pauses partly decay
    pauses = np.concatenate([[0.0], np.cumsum(turn)])
    pauses -= np.linspace(0, pauses[-1], frames) * rng.uniform(0.5, 1)
    inward = np.arctan2(-reach_y * sin, -reach_x * cos)
    yaw = inward + rng.uniform(-0.9, 0.9) + 0.6 * smooth_noise(frames, 6, rng) + pauses
    pitch = rng.uniform(-0.35, 0.0) + 0.22 * smooth_noise(frames, 7, rng)
    roll = 0.06 * smooth_noise(frames, 7, rng)
    return look(eyes, yaw, pitch, roll)


def smooth_noise(length: int, knots: int, rng: np.random.Generator) -> Float64[np.ndarray, " n"]:
    """Interpolate random knots in -1..1 smoothly."""
    position = np.linspace(0, knots - 1, length)
    low = np.minimum(position.astype(int), knots - 2)
    blend = position - low
    blend = blend * blend * (3 - 2 * blend)
    values = rng.uniform(-1, 1, knots)
    return values[low] * (1 - blend) + values[low + 1] * blend


def look(
    eyes: Float64[np.ndarray, "T 3"], yaw: np.ndarray, pitch: np.ndarray, roll: np.ndarray
) -> Float64[np.ndarray, "T 4 4"]:
    """Return poses from the room's frame to cameras (OpenCV axes, meters).

    Args:
        eyes: Camera centers.
        yaw: Viewing directions in plan, in radians.
        pitch: Angles of the viewing directions above the horizon, in radians.
        roll: Rotations about the viewing directions, in radians.
    """
    forward = np.stack([np.cos(yaw) * np.cos(pitch), np.sin(yaw) * np.cos(pitch), np.sin(pitch)], 1)
    level = np.stack([np.sin(yaw), -np.cos(yaw), np.zeros(len(yaw))], 1)
    down = np.cross(forward, level)
    cos, sin = np.cos(roll)[:, None], np.sin(roll)[:, None]
    matrix = np.tile(np.eye(4), (len(eyes), 1, 1))
    matrix[:, :3, :3] = np.stack([cos * level + sin * down, cos * down - sin * level, forward], 1)
    matrix[:, :3, 3] = -np.einsum("tij,tj->ti", matrix[:, :3, :3], eyes)
    return matrix


# ---- The room: size, scale, surfaces, camera path and furniture -----------------------------------------------------


def draw_scene(
    trajectory: Literal["loop", "local"], dynamic_objects: bool, frames: int, rng: np.random.Generator
) -> tuple[RoomScene, Float64[np.ndarray, "T 4 4"]]:
    """Draw a scene and its world-to-camera poses."""
    unit = _log_uniform(*SCALE, rng)
    area, aspect = _log_uniform(*AREA_UNITS, rng), _log_uniform(1.0, 1.25, rng)
    sides = np.array([np.sqrt(area * aspect), np.sqrt(area / aspect)])[rng.permutation(2)]
    size = np.array([*sides, rng.uniform(2.3, 3.2)]) * unit
    camera_from_room = walk(_ring(trajectory, size, unit, rng), frames, rng)
    eyes = np.linalg.inv(camera_from_room)[:, :3, 3]

    scene = draw_shell(size, unit, rng)
    movers, lanes = _movers(size, unit, eyes, rng) if dynamic_objects else ([], [])
    furniture = _furnish(lanes, size, unit, eyes, rng)
    scene = replace(scene, things=(*furniture, *movers))
    return scene, camera_from_room @ scene.room_from_world()


def draw_shell(size: np.ndarray, unit: float, rng: np.random.Generator) -> RoomScene:
    """Draw an empty room: its surfaces, lamp and pose in the world.

    Args:
        size: Length, width and height in meters.
        unit: Scale of the textures in meters.
        rng: Random generator.
    """
    wall = draw_surface((0.0, 0.0, 0.6), (1.0, 0.45, 1.0), unit, rng)
    accent = draw_surface((0.0, 0.0, 0.6), (1.0, 0.45, 1.0), unit, rng)
    walls = [wall if rng.random() < 0.7 else accent for _ in range(4)]
    floor = draw_surface((0.0, 0.05, 0.3), (1.0, 0.5, 0.8), unit, rng)
    ceiling = draw_surface((0.0, 0.0, 0.8), (1.0, 0.12, 1.0), unit, rng)
    light = size * [rng.uniform(-0.3, 0.3), rng.uniform(-0.3, 0.3), rng.uniform(0.75, 0.95)]
    origin, yaw = rng.uniform(-10, 10, 3), float(rng.uniform(-np.pi, np.pi))
    surfaces = (*walls, floor, ceiling)
    return RoomScene(to_vector(size), surfaces, (), to_vector(light), to_vector(origin), yaw)


def _ring(trajectory: str, size: np.ndarray, unit: float, rng: np.random.Generator) -> Ring:
    height = min(unit * rng.uniform(1.2, 1.75), size[2] - 0.3 * unit)
    if trajectory == "loop":
        return ring_along_walls(size, height, unit * rng.uniform(0.45, 0.55), rng)
    radius = rng.uniform(*LOCAL_RADIUS_M)
    x, y = rng.uniform(-1, 1, 2) * (size[:2] / 2 - radius - 0.1)
    return Ring((float(x), float(y), height), (radius, radius), 2.0)


def _furnish(
    lanes: list[Thing], size: np.ndarray, unit: float, eyes: np.ndarray, rng: np.random.Generator
) -> list[Thing]:
    """Place single things, and one or two categories with several instances, where they fit."""
    big = unit * _log_uniform(0.75, 1.25, rng)  # furniture's scale, independent of the room's
    order = [CATALOG[i] for i in rng.permutation(len(CATALOG))]
    num_repeated = rng.integers(1, 3)
    categories = [category for category in order[:num_repeated] for _ in range(rng.integers(2, 6))]
    categories += order[num_repeated : num_repeated + rng.integers(6, 11)]
    things: list[Thing] = []
    for category in sorted(categories, key=lambda category: -category.largest[0] * category.largest[1]):
        placed = _place(category, [*lanes, *things], size, unit, big, eyes, rng)
        if placed:
            things.append(placed)
    return things


def _place(
    category: Category, things: list[Thing], size: np.ndarray, unit: float, big: float, eyes: np.ndarray,
    rng: np.random.Generator,
) -> Thing | None:  # fmt: skip
    """Place a thing without collisions and away from the camera. Return None after 12 attempts."""
    extent = rng.uniform(category.smallest, category.largest) * big
    extent[2] = min(extent[2], 0.85 * size[2])
    gap = 0.03 * unit
    at_wall = category.place in ("wall", "hung")
    for _ in range(12):
        yaw = rng.uniform(-np.pi, np.pi)
        if at_wall:
            side = rng.integers(4)  # -y, +x, +y, -x
            yaw = side * np.pi / 2
        reach = footprint(np.zeros(3), extent, np.array(yaw)).max(0)
        inner = size[:2] / 2 - gap
        if (reach > inner).any():
            continue
        plan = rng.uniform(-1, 1, 2) * (inner - reach)
        if at_wall:
            slack = gap * rng.uniform(0.1, 1) if category.place == "wall" else 1e-3 * unit
            limit = size[:2] / 2 - reach - slack
            axis, sign = [(1, -1), (0, 1), (1, 1), (0, -1)][side]
            plan[axis] = sign * limit[axis]
        z, height = 0.0, unit * rng.uniform(*category.bottom)
        if category.place == "hung":
            z = min(height, 0.97 * size[2] - extent[2])
        elif category.place == "ceiling":
            z = size[2] - extent[2] - 1e-3 * unit
        center = np.array([*plan, max(z, 0.0) + extent[2] / 2])
        if _is_free(center, extent, yaw, things, gap) and is_clear(center, extent, yaw, eyes, 0.2 * unit):
            parts = draw_parts(category, to_vector(extent), rng)
            return Thing(category.name, to_vector(center), to_vector(extent), float(yaw), parts)
    return None


def _movers(
    size: np.ndarray, unit: float, eyes: np.ndarray, rng: np.random.Generator
) -> tuple[list[Thing], list[Thing]]:
    """Return up to two things that move back and forth on a line with pauses, and the lanes to keep free."""
    movers: list[Thing] = []
    lanes: list[Thing] = []
    for category in [MOVERS[i] for i in rng.permutation(len(MOVERS))[: rng.integers(1, 3)]]:
        extent = rng.uniform(category.smallest, category.largest) * unit
        extent[2] = min(extent[2], eyes[:, 2].min() - 0.25 * unit)
        turning = np.array([np.hypot(*extent[:2]), np.hypot(*extent[:2]), extent[2]])  # bounds it at any yaw
        for _ in range(60):
            ends = rng.uniform(-1, 1, (2, 2)) * (size[:2] / 2 - turning[:2] / 2)
            length = float(np.linalg.norm(ends[1] - ends[0]))
            heading = float(np.arctan2(*(ends[1] - ends[0])[::-1]))
            swept, center = turning + [length, 0, 0], np.array([*ends.mean(0), extent[2] / 2])
            if length < 0.7 * unit or not _is_free(center, swept, heading, lanes, 0.03 * unit):
                continue
            track = _drive(ends, heading, len(eyes), rng)
            first = to_vector(np.array([track[0][0], track[0][1], extent[2] / 2]))
            parts = draw_parts(category, to_vector(extent), rng)
            movers.append(Thing(category.name, first, to_vector(extent), track[0][2], parts, tuple(track)))
            lanes.append(Thing("lane", to_vector(center), to_vector(swept), heading, ()))
            break
    return movers, lanes


def _drive(ends: np.ndarray, heading: float, frames: int, rng: np.random.Generator) -> list[Vector]:
    """Return (x, y, yaw) for each frame: back and forth one to three times, with a pause before each leg."""
    legs = rng.integers(2, 5)
    knots = np.sort(rng.uniform(0, frames, 2 * legs))
    goals = np.repeat(np.arange(legs + 1) % 2, 2)[1:-1]
    fraction = np.interp(np.arange(frames), knots, goals)
    leg = np.searchsorted(knots[1::2], np.arange(frames), side="left")
    yaw = heading - np.pi / 2 + np.pi * (leg % 2)  # the front is +y
    positions = ends[0] + fraction[:, None] * (ends[1] - ends[0])
    return [(float(x), float(y), float(angle)) for (x, y), angle in zip(positions, yaw, strict=True)]


def _is_free(center: np.ndarray, extent: np.ndarray, yaw: float, things: list[Thing], gap: float) -> bool:
    """Return whether a box keeps a gap to the footprints of all things that overlap with it in height."""
    if not things:
        return True
    other = np.array([thing.center for thing in things]), np.array([thing.size for thing in things])
    overlaps = np.abs(other[0][:, 2] - center[2]) < (other[1][:, 2] + extent[2]) / 2 + gap
    mine = footprint(center, extent + 2 * gap, np.array(yaw))[None]
    theirs = footprint(*other, np.array([thing.yaw for thing in things]))
    return not (overlaps & footprints_overlap(mine, theirs)).any()


def is_clear(center: np.ndarray, extent: np.ndarray, yaw: float, eyes: np.ndarray, distance: float) -> bool:
    """Return whether all camera centers are farther than a distance in meters from a box."""
    return bool(point_distance(eyes, center, extent, yaw).min() > distance)


def _log_uniform(low: float, high: float, rng: np.random.Generator) -> float:
    return float(np.exp(rng.uniform(np.log(low), np.log(high))))
