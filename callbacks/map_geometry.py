"""Geometry of maps: the axes of a view from above, and labels that do not overlap."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float


def level_axes(up: Float[np.ndarray, " 3"]) -> Float[np.ndarray, "2 3"]:
    """Return two horizontal world axes, right and forward on a map, given the up direction."""
    up = up / max(float(np.linalg.norm(up)), 1e-9)
    axis = np.eye(3)[np.abs(up).argmin()]  # along an axis of the world if one is horizontal
    right = axis - (axis @ up) * up
    right /= np.linalg.norm(right)
    return np.stack((right, np.cross(up, right)))


def spread(places: Float[np.ndarray, "n 2"], size: Float[np.ndarray, " 2"]) -> Float[np.ndarray, "n 2"]:
    """Move the centers of labels of one size until no two labels overlap, at most 200 times."""
    places = places.copy()
    order = np.arange(len(places))
    aside = np.sign(order[:, None] - order[None])[..., None]  # where two are at one place
    for _ in range(200):
        gap = places[:, None] - places[None]
        overlap = size - np.abs(gap)
        touching = (overlap > 1e-6).all(-1) & (aside[..., 0] != 0)
        if not touching.any():
            break
        shorter = np.eye(2, dtype=bool)[overlap.argmin(-1)] & touching[..., None]
        places += 0.5 * np.where(shorter, overlap * np.where(gap == 0, aside, np.sign(gap)), 0).sum(1)
    return places
