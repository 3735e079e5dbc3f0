"""Catalog of furniture: shape and size range of each category. Names are those of VSI-Bench."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from datamodules.sources.rooms import textures
from datamodules.sources.rooms.scene import Material, Part, Vector, to_tuples

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


def _read_categories() -> list[tuple[Category, ...]]:
    """Read the catalog and the moving things of furniture.json.

    A color is a name or hue, saturation and value; `legs` are the height, thickness and color of a leg in each corner.
    """
    content = json.loads(Path(__file__).with_suffix(".json").read_text(encoding="utf-8"))
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
    """Draw the material of a wall, floor or ceiling with hue, saturation and value between low and high."""
    hsv = rng.uniform(low, high)
    other = hsv + rng.uniform([-0.05, -0.15, -0.35], [0.05, 0.25, -0.08])
    period = float(unit * np.exp(rng.uniform(np.log(0.5), np.log(4.0))))
    return Material(draw_pattern(rng), (rgb(hsv), rgb(other)), period, _phase(rng))


def draw_pattern(rng: np.random.Generator) -> int:
    """Draw a pattern of the atlas."""
    return int(rng.integers(len(textures.atlas())))


def rgb(hsv: np.ndarray) -> Vector:
    """Convert hue (periodic), saturation and value (clipped) to RGB in 0..1."""
    hue, saturation, value = hsv[0] % 1, np.clip(hsv[1], 0, 1), np.clip(hsv[2], 0.03, 1)
    ramp = np.clip(np.abs((hue * 6 + np.array([0, 4, 2])) % 6 - 3) - 1, 0, 1)
    red, green, blue = (value * (1 - saturation * (1 - ramp))).tolist()
    return red, green, blue


def _phase(rng: np.random.Generator) -> tuple[float, float]:
    return float(rng.random()), float(rng.random())
