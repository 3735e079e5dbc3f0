"""An atlas of tileable patterns with mipmaps, from a fixed seed.

Patterns carry no metric scale: every surface draws its own period.
"""

from __future__ import annotations

from functools import cache

import numpy as np
from jaxtyping import Float32, Int

SIDE = 64
LEVELS = 7  # 64, 32, ... 1
LEVEL_START = np.cumsum([0] + [(SIDE >> level) ** 2 for level in range(LEVELS)])
TEXELS = int(LEVEL_START[-1])  # per pattern
PLAIN = 3  # the first patterns are faint noise: for furniture


@cache
def atlas() -> Float32[np.ndarray, "patterns texels"]:
    """Values in 0..1; the texels of a pattern are its mipmap levels, each in row order."""
    rng = np.random.default_rng(20)
    v, u = np.mgrid[0:SIDE, 0:SIDE] / SIDE
    noises = [_noise(rng, cells) for cells in (4, 8, 16, 32)]
    clouds = sum(noise * weight for noise, weight in zip(noises, (0.5, 0.25, 0.15, 0.1), strict=True))
    wave = lambda x: 0.5 + 0.5 * np.sin(2 * np.pi * x)  # noqa: E731
    row = np.floor(v * 8)
    patterns = [
        0.35 * clouds, 0.35 * noises[2], 0.25 * noises[3] + 0.1 * noises[1],
        clouds, noises[1], 0.6 * noises[2] + 0.4 * noises[0],
        wave(4 * u), (np.floor(u * 6 + 0.01) % 2), wave(2 * u) * 0.5 + wave(8 * u) * 0.5,
        (np.floor(u * 4) + np.floor(v * 4)) % 2,
        ((u * 4 % 1 < 0.1) | (v * 4 % 1 < 0.1)) * 1.0,
        (((u * 4 + 0.5 * (row % 2)) % 1 < 0.08) | (v * 8 % 1 < 0.15)) * 0.9 + 0.1 * noises[2],
        rng.random(8)[row.astype(int)] * 0.6 + 0.4 * _noise(rng, 4, 32),
        (np.hypot(u * 4 % 1 - 0.5, v * 4 % 1 - 0.5) < 0.25) * 1.0,
        wave(3 * u + 0.35 * np.sin(2 * np.pi * 2 * v)),
        wave(2 * u + 2 * v + 1.2 * clouds),
        (np.abs((u * 4 + v * 4) % 2 - 1) < 0.3) * 1.0,
        (noises[3] > 0.72) * 1.0,
        _noise(rng, 2, 32), np.maximum(wave(4 * u), wave(4 * v)) ** 4,
    ]  # fmt: skip
    return np.stack([_mipmaps(pattern) for pattern in patterns])


def texel(
    pattern: Int[np.ndarray, " n"],
    level: Int[np.ndarray, " n"],
    u: Float32[np.ndarray, " n"],
    v: Float32[np.ndarray, " n"],
) -> Int[np.ndarray, " n"]:
    """Indices into the flattened atlas of the texels at (u, v) (in periods) on a mipmap level."""
    side = SIDE >> level
    column = ((u - np.floor(u)) * SIDE).astype(np.intp) % SIDE >> level  # %: a fraction may round up to 1
    row = ((v - np.floor(v)) * SIDE).astype(np.intp) % SIDE >> level
    return pattern * TEXELS + LEVEL_START[level] + row * side + column


def _noise(rng: np.random.Generator, rows: int, columns: int | None = None) -> np.ndarray:
    """Smoothly interpolated random values on a coarse periodic grid."""
    columns = columns or rows
    grid = rng.random((rows, columns))
    for axis, cells in ((0, rows), (1, columns)):
        position = np.arange(SIDE) * cells / SIDE
        low, blend = position.astype(int), position % 1
        blend = (blend * blend * (3 - 2 * blend)).reshape((-1, 1) if axis == 0 else (1, -1))
        grid = np.take(grid, low, axis) * (1 - blend) + np.take(grid, (low + 1) % cells, axis) * blend
    return (grid - grid.min()) / np.ptp(grid)


def _mipmaps(pattern: np.ndarray) -> np.ndarray:
    levels = [pattern.astype(np.float32)]
    while len(levels) < LEVELS:
        last = levels[-1]
        levels.append(last.reshape(last.shape[0] // 2, 2, last.shape[1] // 2, 2).mean((1, 3)))
    return np.concatenate([level.ravel() for level in levels])
