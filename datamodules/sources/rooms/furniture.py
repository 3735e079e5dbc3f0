"""Catalog of furniture: shape and size range of each category. Names are those of VSI-Bench."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from datamodules.sources.rooms import textures
from datamodules.sources.rooms.scene import Material, Part, Vector

# boxes x0, x1, y0, y1, z0, z1 as fractions of the bounding box (back at y = 0, front at y = 1), and a color index
Recipe = tuple[tuple[float | int, ...], ...]


@dataclass(frozen=True)
class Category:
    """A category of furniture; lengths are in units (meters before scaling).

    Attributes:
        name: Name in VSI-Bench.
        place: On the floor, with its back to a wall, hung on a wall, or at the ceiling.
        smallest: Smallest length, depth and height.
        largest: Largest length, depth and height.
        colors: Hue, saturation and value of each color of the recipe.
        recipe: Boxes that fill the bounding box.
        bottom: Range of the lower edge's height of hung things.
    """

    name: str
    place: Literal["floor", "wall", "hung", "ceiling"]
    smallest: Vector
    largest: Vector
    colors: tuple[Vector, ...]
    recipe: Recipe
    bottom: tuple[float, float] = (0.0, 0.0)


def _legs(top: float, thick: float, color: int) -> Recipe:
    low, high = (0.0, thick), (1 - thick, 1.0)
    return tuple((*x, *y, 0.0, top, color) for x in (low, high) for y in (low, high))


WOOD, DARK, WHITE, STEEL = (0.08, 0.5, 0.55), (0.6, 0.15, 0.13), (0.1, 0.03, 0.93), (0.58, 0.06, 0.68)

CATALOGUE = (
    Category("chair", "floor", (0.38, 0.38, 0.75), (0.6, 0.6, 1.1), ((0.02, 0.75, 0.65), WOOD),
             ((0, 1, 0, 1, 0.42, 0.52, 0), (0, 1, 0, 0.14, 0.52, 1, 0), *_legs(0.42, 0.14, 1))),
    Category("stool", "floor", (0.3, 0.3, 0.4), (0.45, 0.45, 0.75), ((0.14, 0.75, 0.8), DARK),
             ((0, 1, 0, 1, 0.84, 1, 0), *_legs(0.84, 0.18, 1))),
    Category("table", "floor", (0.8, 0.6, 0.6), (1.8, 1.0, 0.8), (WOOD, (0.07, 0.5, 0.4)),
             ((0, 1, 0, 1, 0.88, 1, 0), *_legs(0.88, 0.08, 1))),
    Category("sofa", "wall", (1.2, 0.7, 0.6), (2.2, 1.0, 0.95), ((0.62, 0.5, 0.5), (0.62, 0.4, 0.65)),
             ((0, 1, 0, 1, 0, 0.45, 0), (0, 1, 0, 0.28, 0.45, 1, 0), (0, 0.12, 0.28, 1, 0.45, 0.7, 1),
              (0.88, 1, 0.28, 1, 0.45, 0.7, 1))),
    Category("bed", "wall", (0.9, 1.8, 0.6), (1.8, 2.2, 1.0), (WOOD, (0.55, 0.3, 0.85), WHITE),
             ((0, 1, 0, 0.05, 0, 1, 0), (0, 1, 0.05, 1, 0, 0.3, 0), (0.02, 0.98, 0.05, 0.98, 0.3, 0.55, 1),
              (0.15, 0.85, 0.07, 0.25, 0.55, 0.68, 2))),
    Category("nightstand", "wall", (0.35, 0.3, 0.4), (0.55, 0.45, 0.65), ((0.06, 0.6, 0.45),
             (0.08, 0.4, 0.7)),
             ((0, 1, 0, 0.94, 0, 1, 0), (0.08, 0.92, 0.94, 1, 0.1, 0.45, 1),
              (0.08, 0.92, 0.94, 1, 0.55, 0.9, 1))),
    Category("tv", "hung", (0.7, 0.06, 0.4), (1.5, 0.12, 0.85), (DARK, (0.6, 0.6, 0.28)),
             ((0, 1, 0, 0.8, 0, 1, 0), (0.04, 0.96, 0.8, 1, 0.06, 0.94, 1)), (0.7, 1.2)),
    Category("stove", "wall", (0.5, 0.5, 0.85), (0.8, 0.7, 1.15), (WHITE, DARK),
             ((0, 1, 0, 0.95, 0, 0.8, 0), (0, 1, 0, 0.95, 0.8, 0.84, 1), (0, 1, 0, 0.1, 0.84, 1, 0),
              (0.15, 0.85, 0.95, 1, 0.2, 0.6, 1))),
    Category("refrigerator", "wall", (0.55, 0.55, 1.4), (0.9, 0.8, 2.0), (STEEL, DARK),
             ((0, 1, 0, 0.95, 0, 1, 0), (0, 1, 0.92, 0.96, 0.62, 0.64, 1),
              (0.08, 0.14, 0.95, 1, 0.68, 0.9, 1),
              (0.08, 0.14, 0.95, 1, 0.3, 0.58, 1))),
    Category("washer", "wall", (0.5, 0.5, 0.8), (0.7, 0.7, 1.0), (WHITE, (0.58, 0.4, 0.35), STEEL),
             ((0, 1, 0, 0.96, 0, 1, 0), (0.2, 0.8, 0.96, 1, 0.2, 0.7, 1), (0, 1, 0.9, 0.98, 0.82, 0.97, 2))),
    Category("door", "hung", (0.7, 0.05, 1.9), (1.0, 0.1, 2.1), ((0.07, 0.6, 0.38), (0.14, 0.5, 0.8)),
             ((0, 1, 0, 0.6, 0, 1, 0), (0.1, 0.9, 0.6, 0.8, 0.08, 0.45, 0),
              (0.1, 0.9, 0.6, 0.8, 0.55, 0.94, 0),
              (0.86, 0.95, 0.6, 1, 0.45, 0.5, 1))),
    Category("window", "hung", (0.7, 0.05, 0.8), (1.6, 0.1, 1.3), (WHITE, (0.55, 0.3, 1.0)),
             ((0, 1, 0, 0.6, 0, 1, 0), (0.06, 0.47, 0.6, 1, 0.06, 0.94, 1),
              (0.53, 0.94, 0.6, 1, 0.06, 0.94, 1)),
             (0.8, 1.1)),
    Category("mirror", "hung", (0.4, 0.04, 0.6), (0.8, 0.08, 1.3), ((0.12, 0.7, 0.7), (0.5, 0.12, 0.75)),
             ((0, 1, 0, 0.7, 0, 1, 0), (0.1, 0.9, 0.7, 1, 0.08, 0.92, 1)), (0.5, 1.0)),
    Category("whiteboard", "hung", (0.9, 0.04, 0.7), (1.9, 0.08, 1.2), (STEEL, WHITE),
             ((0, 1, 0, 0.5, 0, 1, 0), (0.02, 0.98, 0.5, 0.7, 0.08, 0.97, 1), (0.1, 0.9, 0.5, 1, 0, 0.05, 0)),
             (0.7, 1.1)),
    Category("clock", "hung", (0.28, 0.04, 0.28), (0.45, 0.08, 0.45), ((0.0, 0.8, 0.6), WHITE, DARK),
             ((0, 1, 0, 0.6, 0, 1, 0), (0.12, 0.88, 0.6, 0.8, 0.12, 0.88, 1),
              (0.46, 0.54, 0.8, 1, 0.45, 0.85, 2)),
             (1.4, 1.8)),
    Category("heater", "hung", (0.6, 0.08, 0.45), (1.4, 0.15, 0.7), (WHITE, STEEL),
             ((0, 1, 0, 0.7, 0, 1, 1), (0, 0.16, 0.7, 1, 0, 1, 0), (0.28, 0.44, 0.7, 1, 0, 1, 0),
              (0.56, 0.72, 0.7, 1, 0, 1, 0), (0.84, 1, 0.7, 1, 0, 1, 0)), (0.08, 0.2)),
    Category("fireplace", "wall", (0.9, 0.3, 0.9), (1.5, 0.5, 1.3),
             ((0.03, 0.6, 0.45), DARK, (0.07, 0.9, 0.95)),
             ((0, 0.22, 0, 0.9, 0, 0.86, 0), (0.78, 1, 0, 0.9, 0, 0.86, 0),
              (0.22, 0.78, 0, 0.9, 0.6, 0.86, 0),
              (0, 1, 0, 1, 0.86, 1, 0), (0.22, 0.78, 0, 0.2, 0, 0.6, 1), (0.35, 0.65, 0.2, 0.5, 0, 0.25, 2))),
    Category("lamp", "floor", (0.3, 0.3, 1.2), (0.5, 0.5, 1.8), (DARK, (0.14, 0.4, 1.0)),
             ((0.2, 0.8, 0.2, 0.8, 0, 0.04, 0), (0.45, 0.55, 0.45, 0.55, 0.04, 0.75, 0),
              (0, 1, 0, 1, 0.75, 1, 1))),
    Category("ceiling light", "ceiling", (0.35, 0.3, 0.08), (1.0, 0.6, 0.22), (WHITE, (0.15, 0.12, 1.0)),
             ((0.1, 0.9, 0.1, 0.9, 0.5, 1, 0), (0, 1, 0, 1, 0, 0.5, 1))),
    Category("bookshelf", "wall", (0.6, 0.25, 1.2), (1.4, 0.4, 2.1), (WOOD, (0.0, 0.7, 0.6),
             (0.33, 0.6, 0.5)),
             ((0, 1, 0, 0.15, 0, 1, 0), (0, 0.06, 0, 1, 0, 1, 0), (0.94, 1, 0, 1, 0, 1, 0),
              (0.06, 0.94, 0.15, 1, 0, 0.05, 0),
              (0.06, 0.94, 0.15, 1, 0.48, 0.53, 0), (0.06, 0.94, 0.15, 1, 0.95, 1, 0),
              (0.1, 0.7, 0.15, 0.8, 0.05, 0.35, 1), (0.3, 0.9, 0.15, 0.8, 0.53, 0.85, 2))),
    Category("closet", "wall", (0.9, 0.5, 1.7), (1.8, 0.65, 2.2), ((0.1, 0.3, 0.75), (0.08, 0.5, 0.35)),
             ((0, 1, 0, 0.95, 0, 1, 0), (0.49, 0.51, 0.95, 0.97, 0.03, 1, 1),
              (0.42, 0.46, 0.95, 1, 0.4, 0.6, 1),
              (0.54, 0.58, 0.95, 1, 0.4, 0.6, 1))),
    Category("piano", "wall", (1.3, 0.5, 1.0), (1.5, 0.65, 1.3), (DARK, WHITE),
             ((0, 1, 0, 0.6, 0, 1, 0), (0, 1, 0.6, 1, 0.5, 0.6, 0), (0.05, 0.95, 0.65, 0.95, 0.6, 0.63, 1),
              (0, 0.06, 0.6, 1, 0, 0.5, 0), (0.94, 1, 0.6, 1, 0, 0.5, 0))),
    Category("toilet", "wall", (0.36, 0.55, 0.7), (0.45, 0.75, 0.9), (WHITE, (0.1, 0.05, 0.8)),
             ((0, 1, 0, 0.3, 0.4, 1, 0), (0.2, 0.8, 0.1, 0.8, 0, 0.4, 1),
              (0.05, 0.95, 0.3, 1, 0.4, 0.52, 0))),
    Category("bathtub", "wall", (1.4, 0.65, 0.45), (1.8, 0.85, 0.65), (WHITE, (0.5, 0.45, 0.8)),
             ((0, 1, 0, 0.1, 0, 1, 0), (0, 1, 0.9, 1, 0, 1, 0), (0, 0.06, 0.1, 0.9, 0, 1, 0),
              (0.94, 1, 0.1, 0.9, 0, 1, 0),
              (0.06, 0.94, 0.1, 0.9, 0, 0.7, 1))),
    Category("trash bin", "floor", (0.22, 0.22, 0.3), (0.4, 0.4, 0.65), ((0.4, 0.15, 0.3), DARK),
             ((0.06, 0.94, 0.06, 0.94, 0, 0.88, 0), (0, 1, 0, 1, 0.88, 1, 1))),
    Category("plant", "floor", (0.3, 0.3, 0.6), (0.7, 0.7, 1.4), ((0.04, 0.7, 0.6), (0.33, 0.7, 0.45),
             (0.28, 0.7, 0.6)),
             ((0.3, 0.7, 0.3, 0.7, 0, 0.3, 0), (0.1, 0.9, 0.0, 0.75, 0.4, 0.8, 1),
              (0.0, 0.7, 0.3, 1, 0.55, 1, 2),
              (0.45, 0.55, 0.45, 0.55, 0.3, 0.5, 0), (0.6, 1, 0.2, 0.7, 0.5, 0.7, 2))),
    Category("suitcase", "floor", (0.4, 0.22, 0.55), (0.55, 0.35, 0.85), ((0.8, 0.6, 0.5), STEEL),
             ((0, 1, 0, 1, 0, 0.78, 0), (0.25, 0.3, 0.4, 0.6, 0.78, 1, 1), (0.7, 0.75, 0.4, 0.6, 0.78, 1, 1),
              (0.3, 0.7, 0.4, 0.6, 0.95, 1, 1))),
)  # fmt: skip

MOVERS = (
    Category("robot", "floor", (0.3, 0.3, 0.35), (0.5, 0.5, 0.7), ((0.08, 0.9, 0.95), DARK, (0.5, 0.8, 0.9)),
             ((0, 1, 0, 1, 0, 0.15, 1), (0.1, 0.9, 0.1, 0.9, 0.15, 0.7, 0),
              (0.25, 0.75, 0.25, 0.75, 0.7, 1, 0),
              (0.3, 0.7, 0.75, 0.8, 0.8, 0.92, 2))),
    Category("shopping cart", "floor", (0.4, 0.55, 0.5), (0.55, 0.8, 0.8), ((0.92, 0.8, 0.85), STEEL),
             ((0, 1, 0.1, 1, 0.4, 0.85, 0), (0, 1, 0, 0.1, 0.85, 1, 1), *_legs(0.4, 0.12, 1))),
)  # fmt: skip


def draw_parts(category: Category, size: Vector, rng: np.random.Generator) -> tuple[Part, ...]:
    """Draws the boxes of a thing of `size` meters, with random colors and textures."""
    jitter = rng.uniform([-0.03, 0.7, 0.75], [0.03, 1.3, 1.15])
    materials = []
    for hue, saturation, value in category.colors:
        hsv = np.array([hue + jitter[0], saturation * jitter[1], value * jitter[2]])
        hsv += rng.uniform(-1, 1, 3) * [0.015, 0.06, 0.05]
        dark = hsv * [1, 1, rng.uniform(0.5, 0.85)]
        pattern = int(rng.integers(textures.PLAIN)) if rng.random() < 0.7 else draw_pattern(rng)
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
    """Draws the material of a wall, floor or ceiling with hue, saturation and value between low and high."""
    hsv = rng.uniform(low, high)
    other = hsv + rng.uniform([-0.05, -0.15, -0.35], [0.05, 0.25, -0.08])
    period = float(unit * np.exp(rng.uniform(np.log(0.5), np.log(4.0))))
    return Material(draw_pattern(rng), (rgb(hsv), rgb(other)), period, _phase(rng))


def draw_pattern(rng: np.random.Generator) -> int:
    """Draws a pattern of the atlas."""
    return int(rng.integers(len(textures.atlas())))


def rgb(hsv: np.ndarray) -> Vector:
    """Converts hue (periodic), saturation and value (clipped) to RGB in 0..1."""
    hue, saturation, value = hsv[0] % 1, np.clip(hsv[1], 0, 1), np.clip(hsv[2], 0.03, 1)
    ramp = np.clip(np.abs((hue * 6 + np.array([0, 4, 2])) % 6 - 3) - 1, 0, 1)
    red, green, blue = (value * (1 - saturation * (1 - ramp))).tolist()
    return red, green, blue


def _phase(rng: np.random.Generator) -> tuple[float, float]:
    return float(rng.random()), float(rng.random())
